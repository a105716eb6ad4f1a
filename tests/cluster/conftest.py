"""One Slurm for all tests of this folder, and the project that is disturbed on it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.settings import params_file as params
from tests.cluster.cluster_project import CHECKPOINT_EVERY, STEPS, Project
from tests.cluster.slurm_cluster import NODES, SlurmCluster, lacking


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    reason = lacking()
    if reason:
        pytest.skip(reason)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ayf-slurm-", dir=place))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder)
    yield cluster
    cluster.down()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def submitting(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared project with a longer teacher, which it trains as a job of Slurm."""
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("submitting") / "project", symlinks=True))
    params.write(root, params.from_preset(root, "smoke", [f"teacher.training.steps={STEPS}"]), "smoke")
    runtime = root / "conf/runtime/slurm.yaml"
    settings = f"checkpoint_every: {CHECKPOINT_EVERY}\nlog_every: 20\ndevice: cpu\n"
    runtime.write_text(settings + runtime.read_text() + "  grace_seconds: 40\n")
    return root


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, submitting: Path, slurm: SlurmCluster) -> Project:
    """The teacher as a job that nothing happened to."""
    project = _copy(submitting, tmp_path_factory.mktemp("undisturbed"), slurm)
    job = project.submit("train_teacher", "runtime=slurm")
    assert project.wait_for_end(job) == "COMPLETED", project.log(job)[-4000:]
    return project


@pytest.fixture
def project(submitting: Path, tmp_path: Path, slurm: SlurmCluster) -> Iterator[Project]:
    """A copy of the prepared project; what it still runs at the end is cancelled."""
    project = _copy(submitting, tmp_path, slurm)
    yield project
    slurm.run("scancel", "--user", str(os.getuid()), "--state=RUNNING")
    slurm.run("scancel", "--user", str(os.getuid()), "--state=PENDING")
    for node in NODES:
        slurm.wait_until_idle(node)


def _copy(prepared: Path, place: Path, slurm: SlurmCluster) -> Project:
    root = place / "project"
    shutil.copytree(prepared, root, symlinks=True)
    return Project(root, slurm)
