"""Stages of the real chain on several workers of Ray, sharded and with teachers elsewhere, against one process."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ayf_core.sampling.generator import Generator
from pipelines.execution.run import run_stage
from pipelines.settings.runtime import RuntimeConfig

_spec = importlib.util.spec_from_file_location("chain", Path(__file__).parent / "test_pipeline.py")
assert _spec is not None
assert _spec.loader is not None
chain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chain)
pytestmark = [pytest.mark.slow, pytest.mark.ray]

SHARDED = RuntimeConfig(
    mode="ray",
    workers=2,
    sharding="full",
    threads_per_worker=1,
    device="cpu",
    log_every=1,
    checkpoint_every=4,
    system_metrics=False,
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = chain.make_project(tmp_path_factory.mktemp("alone") / "project")
    for name in chain.CHAIN[:8]:
        if name not in ("train_features", "distill@lmd"):
            run_stage(root, name, runtime=chain.inline())
    return root


@pytest.mark.parametrize(
    ("stage", "model", "runtime"),
    [
        ("train_teacher", "teacher", SHARDED),
        ("distill@emd", "emd", dataclasses.replace(SHARDED, teacher_workers=1)),
        ("finetune_adversarial", "adversarial", SHARDED),
    ],
)
def test_a_stage_on_sharded_workers_makes_the_model_that_one_process_makes(
    alone: Path, tmp_path: Path, stage: str, model: str, runtime: RuntimeConfig
):
    root = chain.make_project(tmp_path / "project")
    chain.copy_outputs(alone, root)
    shutil.rmtree(root / "models" / model)
    run_stage(root, stage, runtime=runtime)
    for name in ("model.safetensors", *(f"ema/{path.name}" for path in (alone / "models" / model / "ema").iterdir())):
        ours, theirs = (load_file(place / "models" / model / name) for place in (root, alone))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    Generator.load(root / "models" / model)
