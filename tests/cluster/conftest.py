"""One Slurm for all tests of this folder, and the project that is disturbed on it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.settings import params_file as params
from tests.cluster.cluster_project import CHECKPOINT_EVERY, CODE, STEPS, Project
from tests.cluster.slurm_cluster import NODES, SlurmCluster, lacking

REPOSITORY = Path(__file__).resolve().parents[2]


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
def prepared(tmp_path_factory: pytest.TempPathFactory, slurm: SlurmCluster) -> Path:
    """A project whose stages before the teacher are made."""
    root = tmp_path_factory.mktemp("project")
    for name in CODE:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, root / name)
    (root / "data/images").mkdir(parents=True)
    changes = [f"teacher.training.steps={STEPS}"]
    params.write(root, params.from_preset(root, "smoke", changes), "smoke")
    runtime = (root / "conf/runtime/slurm.yaml").read_text()
    settings = f"checkpoint_every: {CHECKPOINT_EVERY}\nlog_every: 20\ndevice: cpu\n"
    (root / "conf/runtime/slurm.yaml").write_text(settings + runtime + "  grace_seconds: 40\n")
    project = Project(root, slurm)
    for command in (("dvc", "init", "--no-scm", "-q"), ("dvc", "repro", "encode_latents")):
        done = project.run(*command, AYF_RUNTIME="inline")
        assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prepared: Path, slurm: SlurmCluster) -> Project:
    """The teacher as a job that nothing happened to."""
    project = _copy(prepared, tmp_path_factory.mktemp("undisturbed"), slurm)
    job = project.submit("train_teacher", "runtime=slurm")
    assert project.wait_for_end(job) == "COMPLETED", project.log(job)[-4000:]
    return project


@pytest.fixture
def project(prepared: Path, tmp_path: Path, slurm: SlurmCluster) -> Iterator[Project]:
    """A copy of the prepared project; what it still runs at the end is cancelled."""
    project = _copy(prepared, tmp_path, slurm)
    yield project
    slurm.run("scancel", "--user", str(os.getuid()), "--state=RUNNING")
    slurm.run("scancel", "--user", str(os.getuid()), "--state=PENDING")
    for node in NODES:
        slurm.wait_until_idle(node)


def _copy(prepared: Path, place: Path, slurm: SlurmCluster) -> Project:
    root = place / "project"
    shutil.copytree(prepared, root, symlinks=True)
    return Project(root, slurm)
