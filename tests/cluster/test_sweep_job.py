"""A sweep as a Slurm job: its trials train on the nodes of the allocation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster.cluster_project import CODE, Project
from tests.cluster.slurm_cluster import SlurmCluster
from tests.made_once import made_once
from tests.sweeps.sweep_project import copy_of, write_project

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents and teachers of a small project, as the tests of sweeps make them too."""
    return made_once(tmp_path_factory, "sweep-project", write_project)


def test_trials_of_a_sweep_train_on_both_nodes(made: Path, tmp_path: Path, repository: Path, slurm: SlurmCluster):
    root = copy_of(made, tmp_path / "project")
    for name in CODE:  # what lies there as links is for one machine
        place = root / name
        if not place.exists():
            shutil.copytree(repository / name, place)
    for file in (repository / "sweeps").glob("*.py"):
        shutil.copyfile(file, root / "sweeps" / file.name)
    project = Project(root, slurm)
    done = project.run("ayf", "submit", "sweep", "tiny", "runtime=slurm", "workers=1", "log_every=4", "device=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials; each trial takes 1 CPU; 2 at once on 2 CPUs" in done.stdout
    assert "best: trial" in done.stdout
    assert all(f"trial {number}: finished" in done.stdout for number in (1, 2, 3, 4))
