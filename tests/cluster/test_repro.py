"""The whole pipeline as a job on two Slurm nodes, followed in the terminal; the laptop then has nothing to do."""

from __future__ import annotations

import pytest
import yaml

from ayf_core.sampling.generator import Generator
from tests.cluster.cluster_project import Project

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_repro_as_a_job_makes_what_loads_and_leaves_nothing_to_do(project: Project):
    done = project.run("ayf", "submit", "repro", "runtime=slurm", "preset=smoke", seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "teacher.training.steps" in done.stdout  # the change of params.yaml is shown
    assert "Ray is up: 2 nodes" in done.stdout
    assert done.stdout.rstrip().endswith("completed")

    stages = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
    assert all((project.root / out["path"]).exists() for stage in stages.values() for out in stage["outs"])
    for name in ("teacher", "weak_teacher", "emd", "lmd", "adversarial"):
        generator = Generator.load(project.root / "models" / name)
        images = generator.sample(generator.draw_noise(2, seed=0), 4, labels=[3, 7]).x
        assert images.isfinite().all()

    again = project.run("dvc", "repro", AYF_RUNTIME="local")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("didn't change, skipping") == len(stages)

    listed = project.run("ayf", "jobs")
    assert "completed" in listed.stdout
    assert "finished" in project.run("ayf", "logs").stdout
