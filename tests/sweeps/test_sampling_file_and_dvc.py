"""Settings stored beside a model's weights are no part of the output that DVC keeps, in a real DVC repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.project.declarations import fingerprint

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = """
import pathlib, shutil
shutil.rmtree("models/emd", ignore_errors=True)
pathlib.Path("models/emd/codec").mkdir(parents=True)
pathlib.Path("models/emd/model.json").write_text(pathlib.Path("params.yaml").read_text())
pathlib.Path("models/emd/codec/codec.json").write_text("{}")
"""
DVC = """
stages:
  distill:
    cmd: python train.py
    deps: [train.py]
    params: [steps]
    outs: [models/emd]
  evaluate:
    cmd: cp models/emd/model.json report.json
    deps: [models/emd]
    outs: [report.json]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A finished pipeline of two stages, with this project's .dvcignore."""
    shutil.copy(REPOSITORY / ".dvcignore", tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text("steps: 10\n")
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    dvc(tmp_path, "repro")
    return tmp_path


def dvc(root: Path, *words: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=root, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_stored_settings_change_nothing_for_dvc_and_go_with_a_retrained_model(project: Path) -> None:
    model, settings = project / "models/emd", project / "models/emd/sampling.json"
    known, lock = fingerprint(model), (project / "dvc.lock").read_text()
    settings.write_text("{}")
    assert "up to date" in dvc(project, "status")
    said = dvc(project, "repro")
    assert "Running stage" not in said
    dvc(project, "commit", "--force")
    assert ((project / "dvc.lock").read_text(), fingerprint(model)) == (lock, known)
    assert settings.exists()

    (project / "params.yaml").write_text("steps: 200\n")
    assert "Running stage 'distill'" in dvc(project, "repro")
    assert (model / "model.json").read_text() == "steps: 200\n"
    assert not settings.exists()

    settings.write_text("{}")
    (project / "params.yaml").write_text("steps: 10\n")
    dvc(project, "repro")  # from the cache of runs
    assert (project / "report.json").read_text() == (model / "model.json").read_text() == "steps: 10\n"
    assert not settings.exists()
    shutil.rmtree(model)
    dvc(project, "checkout")
    assert not settings.exists()
    assert fingerprint(model) == known
