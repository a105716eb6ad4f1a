"""A project of points in the plane, small enough that a trial trains in a second; for tests of sweeps."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.execution.run import run_stage
from pipelines.project.code import write_code
from pipelines.settings import params_file as params
from pipelines.settings.runtime import RuntimeConfig

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = (
    "data.size=600",
    "teacher.network.width=16",
    "teacher.network.depth=2",
    "teacher.training.steps=8",
    "teacher.training.batch_size=64",
    "teacher.training.warmup_steps=2",
    "weak_teacher.training.steps=4",
    "weak_teacher.training.batch_size=64",
    "weak_teacher.training.warmup_steps=1",
    "distill.emd.training.steps=12",
    "distill.emd.training.batch_size=64",
    "distill.emd.training.warmup_steps=2",
    "evaluation.seeds=2",
    "evaluation.steps=[1,2]",
)
LEARNING_RATE = "distill.emd.training.learning_rate"
SWEEP = f"""
question: Which learning rate is best?
stages: [distill@emd]
metrics: [jsd/nfe_2]
space:
  {LEARNING_RATE}: {{low: 1.0e-4, high: 1.0e-2, log: true}}
search: random
trials: 4
scheduler: none
measure_every: 4
"""
INLINE = RuntimeConfig(mode="inline", threads_per_worker=1, device="cpu", system_metrics=False, log_every=4)


def write_project(root: Path) -> Path:
    """The repository's code and stages, with small settings; latents, features and teachers made."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("ayf_core", "pipelines", "conf", "dvc.yaml"):
        (root / name).symlink_to(REPOSITORY / name)
    (root / "data/images").mkdir(parents=True)
    params.write(root, params.from_preset(root, "checkerboard", SETTINGS), "checkerboard")
    write_code(root)
    (root / "runtime.yaml").write_text("mode: inline\ndevice: cpu\nlog_every: 4\n")
    for stage in ("train_codec", "train_features", "encode_latents", "train_teacher", "train_weak_teacher"):
        run_stage(root, stage, runtime=INLINE)
    write_sweep(root)
    return root


def write_sweep(root: Path, text: str = SWEEP, name: str = "tiny") -> Path:
    path = root / "sweeps" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def copy_of(project: Path, root: Path) -> Path:
    """A project of one's own with everything that is made already, and no runs."""
    shutil.copytree(project, root, symlinks=True, ignore=shutil.ignore_patterns("runs", "mlruns"))
    return root
