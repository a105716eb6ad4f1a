"""What is trained on: the samples asked for, latents drawn from the codec's posterior with numbers of their own."""

import pytest
import torch

from ayf_core.data.latent_shards import write_latents
from ayf_core.data.latents import LatentDataset
from ayf_core.randomness import StepRandom
from ayf_core.training.data import LatentData, ShuffledOrder

SHAPE = (2, 3, 3)


@pytest.fixture
def latents(tmp_path):
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(64, *SHAPE, generator=generator), torch.rand(64, *SHAPE, generator=generator)
    write_latents(tmp_path, [(mean, std, torch.arange(64) % 5)], SHAPE, 5, "codec", 64)
    return LatentData(LatentDataset(tmp_path)), mean, std


def test_latents_are_normalised_draws_of_the_posterior(latents):
    data, mean, std = latents
    indices, random = torch.tensor([5, 60, 7]), StepRandom(0, 3, 3)
    batch = data.batch(data.read(indices), random)
    space = data.dataset.space
    drawn = mean[indices] + std[indices] * random.normal("posterior", SHAPE)
    torch.testing.assert_close(batch.x, space.normalise(drawn), rtol=0, atol=0)


def test_the_posterior_s_noise_is_not_the_path_s(latents):
    data, mean, std = latents
    indices, random = torch.arange(64), StepRandom(0, 3, 64)
    x = data.dataset.space.denormalise(data.batch(data.read(indices), random).x)
    noise = ((x - mean) / std).flatten()
    keep = std.flatten() > 0.05
    path = random.normal("noise", SHAPE).flatten()
    assert abs(float(noise[keep].mean())) < 0.15
    assert 0.8 < float(noise[keep].std()) < 1.2
    correlation = torch.corrcoef(torch.stack([noise[keep], path[keep]]))[0, 1]
    assert abs(float(correlation)) < 4 / len(noise) ** 0.5


@pytest.mark.parametrize("step", [0, 3, 6, 7])
def test_rows_of_a_step_are_those_of_its_global_batch(step):
    whole = ShuffledOrder(50, 8, seed=1).indices(step)
    for rows in (slice(0, 3), slice(3, 8), slice(7, 8), slice(0, 8)):
        assert torch.equal(ShuffledOrder(50, 8, seed=1).indices(step, rows), whole[rows])
