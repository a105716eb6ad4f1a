"""Laws of the time pair (t, s): always in order, and spread as published."""

import math

import pytest
import torch

from ayf_core.randomness import StepRandom
from tests.made import intervals

COUNT = 400_000


def draw(count=COUNT, seed=0, **settings):
    return intervals(**settings).sample(StepRandom(seed, 0, count))


def share(condition):
    return float(condition.double().mean())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"p_mean": -0.6, "p_std": 1.6},
        {"p_mean": 5.0, "p_std": 5.0},
        {"p_mean": -30.0, "p_std": 1.0},
        {"full_jump_fraction": 0.3, "diagonal_fraction": 0.3},
    ],
)
def test_times_are_float64_in_order_and_on_the_path(settings):
    t, s = draw(**settings)
    assert t.dtype == s.dtype == torch.float64
    assert s.min() >= 0
    assert (s <= t).all()
    assert t.max() <= 1


@pytest.mark.parametrize(("p_mean", "p_std", "expected"), [(-0.8, 1.0, 0.00136), (-0.6, 1.6, 0.0402)])
def test_share_of_long_intervals_is_the_published_one(p_mean, p_std, expected):
    t, s = draw(p_mean=p_mean, p_std=p_std)
    error = math.sqrt(expected / COUNT)
    assert share(t - s > 0.9) == pytest.approx(expected, abs=4 * error)


def test_interval_has_its_median_at_the_logistic_of_the_mean():
    t, s = draw(p_mean=-0.8, p_std=1.0)
    assert float((t - s).median()) == pytest.approx(1 / (1 + math.exp(0.8)), abs=0.003)


def test_end_time_is_uniform_in_the_room_the_interval_leaves():
    t, s = draw()
    place = s / (1 - (t - s))
    quartiles = torch.quantile(place[:100_000], torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_the_diagonal_is_told_without_the_times(fraction):
    law, random = intervals(diagonal_fraction=fraction), StepRandom(3, 7, slice(5, 1005))
    t, s = law.sample(random)
    told = law.diagonal(random)
    assert (told is None) == (fraction == 0)
    assert torch.equal(t == s, torch.zeros(1000, dtype=torch.bool) if told is None else told)


def test_asked_shares_are_full_jumps_and_on_the_diagonal():
    t, s = draw(full_jump_fraction=0.1, diagonal_fraction=0.2)
    assert share((t == 1) & (s == 0)) == pytest.approx(0.1, abs=0.003)
    assert share(t == s) == pytest.approx(0.2, abs=0.003)


def test_the_published_law_draws_neither_full_jumps_nor_the_diagonal():
    t, s = draw()
    assert share((t == s) | ((t == 1) & (s == 0))) == 0


def test_where_a_pair_lies_is_drawn_apart_from_which_kind_of_pair_it_is():
    # Of the pairs on the diagonal, and of the others, s fills its whole room.
    t, s = draw(diagonal_fraction=0.5)
    for chosen in (t == s, t > s):
        place = (s / (1 - (t - s)))[chosen][:100_000]
        quartiles = torch.quantile(place, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), rtol=0, atol=0.01)


def test_how_long_an_interval_is_and_where_it_lies_are_independent():
    t, s = draw(diagonal_fraction=0.2)
    kept = t > s
    pair = torch.stack([(t - s)[kept], (s / (1 - (t - s)))[kept]])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / COUNT**0.5 * 1.2
