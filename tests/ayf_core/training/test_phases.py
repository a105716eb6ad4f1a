"""A phase at work: its learning rate at each step, and steps left out without asking the device."""

import math

import pytest
import torch
from torch import nn

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.objectives.base import Batch, Loss
from ayf_core.training.context import LocalContext
from ayf_core.training.micro_batches import MicroBatch
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import SKIPPED_IN_A_ROW, Phase, PhaseRunner
from tests.ayf_core.trainings import training_settings

WHOLE = [MicroBatch(slice(0, 4), 1.0)]


def slope(network, batch, random, step, monitor=False):
    """A loss whose gradient is the mean of x."""
    return Loss((network(batch.x)).mean())


def runner(tmp_path, learning_rate=None, **settings):
    network = nn.Linear(1, 1, bias=False)
    phase = Phase(name="student", network=network, objective=slope, learning_rate=learning_rate)
    return PhaseRunner(phase, training_settings(**settings), LocalContext(tmp_path), LoopOptions())


def update(phase, step, x=1.0):
    batch = Batch(torch.full((4, 1), x), Condition())
    return phase.update(WHOLE, [(batch, None)], step, True)


def test_each_step_is_as_long_as_its_own_learning_rate(tmp_path):
    phase = runner(tmp_path, steps=8, learning_rate=0.5, warmup_steps=3, schedule="cosine")
    gone, rates = [], []
    for step in range(8):
        before = phase.network.weight.item()
        metrics = update(phase, step)
        gone.append(before - phase.network.weight.item())
        rates.append(float(metrics["learning_rate"]))
    warmup = [0.5 / 3, 1.0 / 3]
    cosine = [0.25 * (1 + math.cos(math.pi * done / 5)) for done in range(5)]
    assert rates == pytest.approx([*warmup, 0.5, *cosine])
    # Of a gradient that never changes, Adam takes the sign: the step is the rate.
    assert gone == pytest.approx(rates, rel=1e-4)


def test_a_phase_may_have_a_learning_rate_of_its_own(tmp_path):
    phase = runner(tmp_path, learning_rate=0.25)
    assert float(update(phase, 0)["learning_rate"]) == 0.25
    assert phase.settings == training_settings(learning_rate=0.25)


def test_a_step_left_out_changes_nothing_and_the_next_goes_on(tmp_path):
    phase, expected = runner(tmp_path), runner(tmp_path)
    expected.network.load_state_dict(phase.network.state_dict())
    for step, x in enumerate([1.0, math.nan, 2.0, math.inf, 3.0]):
        update(phase, step, x)
        if math.isfinite(x):
            update(expected, step, x)
    assert torch.equal(phase.network.weight, expected.network.weight)
    state, wanted = (p.optimizer.state_dict()["state"][0] for p in (phase, expected))
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert phase.skipped == 2


def test_too_many_in_a_row_are_told_though_the_gradient_recovered_before_anyone_looked(tmp_path):
    phase = runner(tmp_path)
    for step in range(SKIPPED_IN_A_ROW - 1):
        update(phase, step, math.nan)
    update(phase, SKIPPED_IN_A_ROW - 1, 1.0)
    phase.check(SKIPPED_IN_A_ROW)
    for step in range(SKIPPED_IN_A_ROW):
        update(phase, step, math.nan)
    update(phase, SKIPPED_IN_A_ROW, 1.0)
    with pytest.raises(AyfError, match="'student' was not finite for 20 steps in a row"):
        phase.check(SKIPPED_IN_A_ROW)


def test_no_step_that_is_not_logged_asks_the_device_for_a_number(tmp_path, monkeypatch):
    phase = runner(tmp_path)
    update(phase, 0)

    def refuse(*_):
        raise AssertionError("the host waits for the device")

    batch = Batch(torch.ones(4, 1), Condition())
    for name in ("__bool__", "__float__", "__int__", "item", "tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    phase.update(WHOLE, [(batch, None)], 1, False)
