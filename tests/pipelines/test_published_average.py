"""What codec and classifier publish is the average that `ema_std` names, not the first of `ema_stds`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ayf_core.registry import Chosen, find
from ayf_core.training.context import LocalContext
from ayf_core.training_settings import TrainingSettings
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages import train_codec, train_features
from pipelines.stages.job import Job

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

CODEC = {"latent_channels": 2, "channels": [8], "layers_per_block": 1, "kl_weight": 0.0}
STAGES: Mapping[str, tuple[Callable[..., Any], str]] = {
    "codec": (train_codec.train, "autoencoder/diffusion_pytorch_model.safetensors"),
    "features": (train_features.train, "classifier.safetensors"),
}


@pytest.mark.parametrize("published", [0.05, 0.1])
@pytest.mark.parametrize("stage", STAGES)
def test_the_average_of_the_width_that_the_settings_name_is_published(
    tmp_path: Path, stage: str, published: float
) -> None:
    train, file = STAGES[stage]
    training = TrainingSettings(
        steps=4,
        batch_size=8,
        precision="float32",
        learning_rate=0.01,
        beta1=0.9,
        beta2=0.99,
        weight_decay=0.0,
        warmup_steps=1,
        schedule="constant",
        gradient_clip=1.0,
        ema_stds=[0.05, 0.1],
        ema_std=published,
    )
    job = Job(
        seed=0,
        runtime=RuntimeConfig(),
        data=Chosen(find("data set", "digits"), {"test_fraction": 0.3}),
        features=Chosen(find("features", "classifier"), {"width": 8, "training": training}),
        neighbours=5,
    )
    codec = find("codec", "autoencoder_kl").load()(**CODEC, training=training)
    train({"job": job, "codec": codec}, LocalContext(tmp_path))
    weights = load_file(tmp_path / "final" / file)
    averages = {std: load_file(tmp_path / f"ema/ema_{std}_00000004.safetensors") for std in (0.05, 0.1)}

    def gap(std: float) -> float:
        named = {name.removeprefix("autoencoder."): tensor for name, tensor in averages[std].items()}
        return max((weights[name] - named[name]).abs().max().item() for name in weights)

    other = 0.15 - published
    assert gap(published) == 0.0
    assert gap(round(other, 2)) > 0.0
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
