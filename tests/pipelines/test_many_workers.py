"""Stages of the real chain on several workers of Ray, sharded and with teachers elsewhere, against one process."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ayf_core.sampling.generator import Generator
from pipelines.execution.run import run_stage
from pipelines.settings.runtime import RuntimeConfig
from tests.chain import copy_outputs, make_project

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


@pytest.mark.parametrize(
    ("stage", "model", "runtime"),
    [
        ("train_teacher", "teacher", SHARDED),
        ("distill@emd", "emd", dataclasses.replace(SHARDED, teacher_workers=1)),
        ("finetune_adversarial", "adversarial", SHARDED),
    ],
)
def test_a_stage_on_sharded_workers_makes_the_model_that_one_process_makes(
    smoke_chain: Path, tmp_path: Path, stage: str, model: str, runtime: RuntimeConfig
):
    root = make_project(tmp_path / "project")
    copy_outputs(smoke_chain, root)
    shutil.rmtree(root / "models" / model)
    run_stage(root, stage, runtime=runtime)
    for name in (
        "model.safetensors",
        *(f"ema/{path.name}" for path in (smoke_chain / "models" / model / "ema").iterdir()),
    ):
        ours, theirs = (load_file(place / "models" / model / name) for place in (root, smoke_chain))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    Generator.load(root / "models" / model)
