"""Latents as a training sees them: a posterior sample, normalised, by noise that nothing else of the step uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ayf_core.data.latent_shards import write_latents
from ayf_core.data.latents import LatentDataset
from ayf_core.randomness import StepRandom
from ayf_core.training.data import LatentData

ROWS = 256


@pytest.fixture
def data(tmp_path: Path) -> LatentData:
    """Latents whose posterior is N(0, 1): what is drawn is the noise itself, but for the measured shift and scale."""
    mean = torch.zeros(ROWS, 3, 2, 2)
    batch = (mean, torch.ones_like(mean), torch.arange(ROWS) % 4)
    write_latents(tmp_path, [batch], (3, 2, 2), num_classes=4, codec_fingerprint="none", shard_size=ROWS)
    return LatentData(LatentDataset(tmp_path))


def test_posterior_noise_is_independent_of_the_noise_of_the_path(data: LatentData) -> None:
    z = data.batch(data.read(torch.arange(ROWS)), StepRandom(seed=3, step=5, rows=ROWS)).x
    assert z.std().item() == pytest.approx(1.0, abs=0.05)
    noise = StepRandom(seed=3, step=5, rows=ROWS).normal("noise", (3, 2, 2))
    correlation = torch.corrcoef(torch.stack([z.flatten(), noise.flatten()]))[0, 1].item()
    assert abs(correlation) < 0.08  # 4.4 standard deviations of the correlation of 3,072 independent pairs


def test_posterior_noise_is_new_in_every_step_and_the_same_in_the_same(data: LatentData) -> None:
    def drawn(step: int) -> torch.Tensor:
        return data.batch(data.read(torch.arange(ROWS)), StepRandom(seed=3, step=step, rows=ROWS)).x

    assert torch.equal(drawn(1), drawn(1))
    assert (drawn(1) - drawn(2)).abs().max() > 1.0
