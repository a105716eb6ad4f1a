"""The optimiser's groups and the learning rate as a function of the step."""

import math

import pytest
import torch
from torch import nn

from ayf_core.errors import AyfError
from ayf_core.registry import names
from ayf_core.settings import settings_of
from ayf_core.training.optimisers import build_optimiser, learning_rate
from ayf_core.training_settings import TrainingSettings
from tests.ayf_core.trainings import training_settings


def rates(steps, total=100, **settings):
    chosen = training_settings(learning_rate=2.0, steps=total, **settings)
    return [learning_rate(chosen, step) for step in steps]


def test_warmup_grows_in_equal_steps_and_its_first_is_not_zero():
    assert rates(range(5), warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_constant_schedule_stays():
    assert rates([0, 50, 99]) == [2.0, 2.0, 2.0]


def test_cosine_schedule_falls_from_the_top_after_warmup_to_nearly_zero():
    start, middle, end = rates([20, 60, 99], warmup_steps=20, schedule="cosine")
    assert start == pytest.approx(2.0)
    assert middle == pytest.approx(1.0)
    assert 0 < end == pytest.approx(1 + math.cos(math.pi * 79 / 80))


def test_inverse_square_root_schedule_joins_the_warmup_without_a_jump():
    before, after, later = rates([99, 100, 399], total=1000, warmup_steps=100, schedule="inverse_sqrt")
    assert before == pytest.approx(2.0)
    assert after == pytest.approx(2.0, rel=0.01)
    assert later == pytest.approx(1.0)


def test_schedules_are_offered_by_name_and_another_name_is_refused_with_the_nearest():
    assert settings_of(TrainingSettings)["schedule"].words() == ("constant", "cosine", "inverse_sqrt")
    with pytest.raises(AyfError, match="unknown learning-rate schedule 'cosin': did you mean cosine"):
        rates([50], schedule="cosin")


@pytest.mark.parametrize("schedule", names("schedule"))
@pytest.mark.parametrize("warmup", [0, 1, 100, 200])
def test_learning_rate_is_positive_and_never_above_its_top(schedule, warmup):
    values = rates(range(100), warmup_steps=warmup, schedule=schedule)
    assert all(0 < value <= 2.0 + 1e-12 for value in values)


def test_weight_decay_acts_on_matrices_alone():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    module[2].weight.requires_grad_(False)
    optimizer = build_optimiser(module, training_settings(learning_rate=0.1, weight_decay=0.5))
    decayed, plain = optimizer.param_groups
    assert {id(p) for p in decayed["params"]} == {id(module[0].weight)}
    assert {id(p) for p in plain["params"]} == {id(module[0].bias), id(module[1].weight), id(module[1].bias)}

    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.clone() for name, p in module.named_parameters()}
    optimizer.step()
    after = dict(module.named_parameters())
    torch.testing.assert_close(after["0.weight"], 0.95 * before["0.weight"])
    for name in ("0.bias", "1.weight", "2.weight"):
        assert torch.equal(after[name], before[name])


def test_settings_reach_the_optimiser():
    optimizer = build_optimiser(nn.Linear(2, 2), training_settings(learning_rate=0.3, beta1=0.5, beta2=0.7))
    assert optimizer.defaults["lr"] == 0.3
    assert optimizer.defaults["betas"] == (0.5, 0.7)
