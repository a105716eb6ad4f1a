"""Seconds of a step: timed here, or from a data sheet."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from torch import Tensor, nn

from ayf_core.errors import AyfError
from ayf_core.objectives.base import Batch, Loss
from ayf_core.planning.hardware import (
    BANDWIDTH_FRACTION,
    HARDWARE,
    LAUNCH_SECONDS,
    MATRIX_FRACTION,
    hardware_named,
)
from ayf_core.planning.meter import Operation
from ayf_core.planning.step import Planned, Trained, step_cost
from ayf_core.planning.timing import expected_step, measured_step
from ayf_core.randomness import StepRandom
from ayf_core.training.phases import Phase
from tests.ayf_core.trainings import training_settings


class Slow(nn.Linear):
    """Half a millisecond of work a sample."""

    def forward(self, x: Tensor) -> Tensor:
        end = time.process_time() + 0.0005 * len(x)
        while time.process_time() < end:
            pass
        return super().forward(x)


def mean(network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
    return Loss(network(batch.x).mean(), {})


def planned(network: type[nn.Linear], width: int) -> Planned:
    def build() -> Trained:
        return Trained([Phase(name="linear", network=network(width, width), objective=mean)])

    return Planned(settings=training_settings(), shape=(width,), build=build)


def test_a_step_that_takes_long_is_timed_with_fewer_samples_and_scaled() -> None:
    timing = measured_step(planned(Slow, 8), 4096, seconds=0.3)
    assert 4 <= timing.rows <= 256
    assert timing.seconds == pytest.approx(2.048, rel=0.2)


def test_a_short_step_is_timed_whole_and_draws_nothing_from_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    timing = measured_step(planned(nn.Linear, 8), 16, seconds=5.0)
    assert timing.rows == 16
    assert 0 < timing.seconds < 1
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_operation_takes_the_longer_of_arithmetic_and_memory() -> None:
    card = HARDWARE["h100"]
    assert card.seconds(1e12, 0, "bfloat16") == pytest.approx(1e12 / (MATRIX_FRACTION * card.bfloat16))
    assert card.seconds(1e12, 0, "float32") == pytest.approx(1e12 / (MATRIX_FRACTION * card.float32))
    assert card.seconds(1e12, 0, "float32", tf32=True) == pytest.approx(1e12 / (MATRIX_FRACTION * card.tf32))
    assert card.seconds(1e3, 1e12, "bfloat16") == pytest.approx(1e12 / (BANDWIDTH_FRACTION * card.bandwidth))


def test_a_step_on_a_card_is_the_sum_of_its_operations_or_what_the_host_needs() -> None:
    cost = step_cost(planned(nn.Linear, 8), 4)
    assert expected_step(cost, HARDWARE["h100"]) == pytest.approx(LAUNCH_SECONDS * len(cost.operations))
    large = dataclasses.replace(cost, operations=[Operation(10**13, 0, "float32")] * 3, scale=2.0)
    one = HARDWARE["h100"].seconds(1e13, 0, "float32")
    assert expected_step(large, HARDWARE["h100"]) == pytest.approx(6 * one)


def test_no_card_is_slower_at_lower_precision() -> None:
    for card in HARDWARE.values():
        assert card.bfloat16 >= card.tf32 >= card.float32 > 1e12
        assert 2**34 < card.memory < 2**38
        assert 1e11 < card.bandwidth < 1e13


def test_unknown_hardware_is_refused_with_the_names() -> None:
    with pytest.raises(AyfError, match=r"no hardware 'h1000': choose one of rtx-3090, .*h100"):
        hardware_named("h1000")
