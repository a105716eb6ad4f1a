"""The real chain at its smallest (`smoke`), in one process: projects for the tests that need one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.execution.run import run_stage
from pipelines.project.code import write_code
from pipelines.settings import params_file as params
from pipelines.settings.runtime import RuntimeConfig

REPOSITORY = Path(__file__).resolve().parents[1]
CHAIN = [
    "train_codec",
    "train_features",
    "encode_latents",
    "train_teacher",
    "train_weak_teacher",
    "distill@emd",
    "distill@lmd",
    "finetune_adversarial",
    *(f"evaluate@{name}" for name in ("teacher", "weak_teacher", "emd", "lmd", "adversarial")),
    "report",
]


def make_project(root: Path, *overrides: str, preset: str = "smoke", to_edit: bool = False) -> Path:
    """A project folder with this repository's code (copies, where it is `to_edit`), and settings of its own."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("ayf_core", "dashboards", "pipelines", "conf"):
        if to_edit:
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (root / name).symlink_to(REPOSITORY / name)
    (root / "dvc.yaml").symlink_to(REPOSITORY / "dvc.yaml")
    (root / "data/images").mkdir(parents=True)
    params.write(root, params.from_preset(root, preset, list(overrides)), preset)
    write_code(root)
    (root / "runtime.yaml").write_text("mode: inline\ncheckpoint_every: 2\nlog_every: 1\nsystem_metrics: false\n")
    return root


def copy_outputs(source: Path, target: Path) -> None:
    for name in ("models", "data"):
        shutil.copytree(source / name, target / name, dirs_exist_ok=True)


def inline() -> RuntimeConfig:
    return RuntimeConfig(mode="inline", threads_per_worker=1, log_every=1, checkpoint_every=4, system_metrics=False)


def make_smoke_chain(root: Path) -> None:
    """Every stage in turn, the project's own MLflow store included."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        make_project(root)
        for name in CHAIN:
            run_stage(root, name, runtime=inline())
