"""The smoke chain on a GPU, in bfloat16 and with what saves memory; on the CPU too, so that it cannot rot."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from pipelines.execution.run import run_stage
from tests.chain import CHAIN, inline, make_project

TRAININGS = ("codec", "features", "teacher", "weak_teacher", "distill.emd", "distill.lmd", "adversarial")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_smoke_chain_in_bfloat16(tmp_path, monkeypatch, no_foreign_settings, device):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_project(tmp_path / "project", *(f"{name}.training.precision=bfloat16" for name in TRAININGS))
    runtime = dataclasses.replace(inline(), device=device, activation_checkpointing=True, micro_batch="auto")
    for name in CHAIN:
        run_stage(root, name, runtime=runtime)
    reported = json.loads((root / "reports/metrics.json").read_text())
    assert reported
    assert all(math.isfinite(value) for value in numbers(reported))
    for model in ("teacher", "weak_teacher", "emd", "lmd", "adversarial"):
        saved = load_file(root / "models" / model / "model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.gpu
def test_a_compiled_distillation_on_a_gpu(tmp_path, monkeypatch, no_foreign_settings):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_project(tmp_path / "project")
    runtime = dataclasses.replace(inline(), device="cuda", compile=True)
    for name in CHAIN[: CHAIN.index("distill@emd") + 1]:
        run_stage(root, name, runtime=runtime)
    assert (root / "models/emd/model.safetensors").is_file()


def numbers(tree):
    """Every number of nested mappings and lists."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for part in tree for number in numbers(part)]
    return [tree] if isinstance(tree, int | float) else []
