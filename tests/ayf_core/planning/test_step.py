"""What a step costs according to the plan, and according to the step itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ayf_core.conditions import Condition, class_labels
from ayf_core.errors import AyfError
from ayf_core.guidance.autoguidance import Autoguided
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.base import Batch, Loss
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.planning.meter import ATTENTION_FLOPS
from ayf_core.planning.step import BUCKETS, GATHERED, PARTS, Planned, StepRunner, Trained, flops_of, step_cost
from ayf_core.randomness import StepRandom
from ayf_core.times import LogitNormalTime
from ayf_core.training.context import LocalContext
from ayf_core.training.phases import Phase
from ayf_core.velocity import Autoguidance, NetworkVelocity
from tests.ayf_core.trainings import training_settings
from tests.made import intervals, tangent

SPECS = {
    "mlp": NetworkSpec(kind="mlp", settings={"width": 64, "depth": 3, "activation": "silu"}, shape=(2,)),
    "dit": NetworkSpec(
        kind="dit",
        settings={"width": 32, "depth": 2, "heads": 2, "patch_size": 1},
        shape=(4, 8, 8),
        conditions=class_labels(10),
    ),
}


def teacher(spec: NetworkSpec) -> Planned:
    def build() -> Trained:
        time_law = LogitNormalTime(mean=0.0, std=1.0)
        objective = FlowMatching(time_law=time_law, conditions=spec.conditions, label_dropout=0.1)
        return Trained([Phase(name="teacher", network=build_network(spec), objective=objective)])

    return Planned(settings=training_settings(), shape=spec.shape, build=build)


def student(spec: NetworkSpec, backend: str = "dual") -> Planned:
    def build() -> Trained:
        strong, weak = (build_network(spec).requires_grad_(False) for _ in range(2))
        objective = EulerianDistillation(
            teacher=Autoguidance(NetworkVelocity(strong), NetworkVelocity(weak)),
            time_law=intervals(),
            tangent=tangent(backend=backend),
            guidance=Autoguided(scale_min=1.0, scale_max=2.0),
            weighting="uniform",
            steps=100,
        )
        network = build_network(dataclasses.replace(spec, interval=True, guidance=True))
        return Trained([Phase(name="student", network=network, objective=objective)], [strong, weak])

    return Planned(settings=training_settings(), shape=spec.shape, build=build)


def real_step(planned: Planned, rows: int, folder: Path) -> tuple[StepRunner, Batch]:
    """Ready for its next step, with optimiser states and gradients of a first one."""
    runner = StepRunner(planned, planned.build(), LocalContext(folder), lambda count: StepRandom(0, 0, count))
    batch = planned.batch(rows)
    runner(batch)
    return runner, batch


def profiled_rise(call: Any) -> int:
    """Bytes above those held before, at the peak, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("make", [teacher, student])
def test_operations_and_memory_are_those_of_the_real_step(make: Any, name: str, tmp_path: Path) -> None:
    planned, rows = make(SPECS[name]), 32
    cost = step_cost(planned, rows)
    runner, batch = real_step(planned, rows, tmp_path)
    # Gradients of the step before are let go first, which the profiler does not see: they are not held at the start.
    held = sum(cost.state.values()) + 4 * cost.frozen_parameters
    measured = held + profiled_rise(lambda: runner(batch))
    assert cost.peak == pytest.approx(measured, rel=0.02)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        runner(batch)
    assert cost.flops == counter.get_total_flops() > 0
    assert cost.exact


def test_attention_on_a_cpu_is_counted() -> None:
    q = torch.zeros(2, 4, 16, 8)
    flops, _ = flops_of(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert flops == 2 * (2 * 2 * 4 * 16 * 16 * 8)  # q kᵀ and P v, a product and a sum for each


def test_the_state_is_weights_two_moments_and_an_average_a_width() -> None:
    cost = step_cost(teacher(SPECS["mlp"]), 8)
    weights = 4 * sum(p.numel() for p in build_network(SPECS["mlp"]).parameters())
    assert cost.parameters * 4 == cost.state["weights"] == cost.model == weights
    assert cost.state["averages"] == 2 * weights
    assert 2 * weights <= cost.state["optimiser"] < 2.01 * weights  # and a counter a tensor


def test_parts_of_a_distillation() -> None:
    cost = step_cost(student(SPECS["dit"]), 32)
    assert set(cost.memory) == set(PARTS)
    assert cost.memory["frozen"] == pytest.approx(4 * cost.frozen_parameters, rel=0.01)
    assert cost.memory["tangents"] > 0.05 * cost.memory["activations"] > 0
    assert step_cost(teacher(SPECS["dit"]), 32).memory["tangents"] == 0


def test_gradients_wait_for_the_last_micro_batch() -> None:
    once, thrice = step_cost(teacher(SPECS["dit"]), 16), step_cost(teacher(SPECS["dit"]), 16, micro_batches=3)
    assert thrice.memory["gradients"] == pytest.approx(thrice.state["weights"], rel=0.01)
    assert once.memory["gradients"] < 0.5 * thrice.memory["gradients"]
    assert thrice.flops == pytest.approx(3 * once.flops)
    assert thrice.memory["activations"] == pytest.approx(once.memory["activations"])


def test_nothing_is_drawn_and_nothing_is_changed() -> None:
    before = torch.random.get_rng_state()
    step_cost(student(SPECS["mlp"]), 8)
    assert torch.equal(before, torch.random.get_rng_state())


class Peeking(nn.Module):
    """Looks at its values, which a tensor without contents cannot answer."""

    def __init__(self, peeks: bool) -> None:
        super().__init__()
        self.peeks = peeks
        self.layers = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.peeks and bool(x.sum() > 1e9):
            return x
        return self.layers(x)


def squares(network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
    return Loss(network(batch.x).square().mean(), {})


def peeking(peeks: bool) -> Planned:
    def build() -> Trained:
        return Trained([Phase(name="peeking", network=Peeking(peeks), objective=squares)])

    return Planned(settings=training_settings(), shape=(8,), build=build)


@pytest.mark.parametrize("rows", [4, 512])
def test_a_network_that_looks_at_its_values_takes_a_small_step_for_real(rows: int) -> None:
    plain, peeked = step_cost(peeking(False), rows), step_cost(peeking(True), rows)
    assert plain.exact
    assert peeked.flops == plain.flops
    assert peeked.peak == pytest.approx(plain.peak, rel=0.02)
    assert peeked.exact == (rows == 4)


def test_a_network_that_fails_is_named_with_its_error() -> None:
    planned = dataclasses.replace(peeking(False), shape=(5,))
    with pytest.raises(AyfError, match=r"a step on samples \[5\] fails with RuntimeError: .*shapes"):
        step_cost(planned, 4)


def test_workers_that_hold_everything_need_a_bucket_for_each_gradient() -> None:
    cost = step_cost(teacher(SPECS["dit"]), 8)
    assert cost.on_workers(1, sharded=True) == cost.memory
    assert cost.on_workers(4, sharded=False) == {**cost.memory, BUCKETS: cost.state["weights"]}


def test_sharding_divides_what_is_kept_and_gathers_a_block_at_a_time() -> None:
    cost = step_cost(teacher(SPECS["dit"]), 8)
    network = build_network(SPECS["dit"])
    block = 4 * sum(p.numel() for p in network.sharded_blocks[0].parameters())
    memory = cost.on_workers(4, sharded=True)
    for part in ("weights", "optimiser", "averages"):
        assert memory[part] == pytest.approx(cost.memory[part] / 4)
    assert memory["activations"] == cost.memory["activations"]
    assert memory[GATHERED] == pytest.approx(cost.state["weights"] - 2 * block + 3 * block, rel=0.01)
    whole = cost.on_workers(4, sharded=True, micro_batches=2)
    assert whole["gradients"] == cost.memory["gradients"]


def test_a_batch_brings_whole_numbers_for_each_condition() -> None:
    planned = dataclasses.replace(peeking(False), conditions=("labels", "colour"))
    batch = planned.batch(3)
    assert batch.x.shape == (3, 8)
    assert {name: value.dtype for name, value in batch.condition.items()} == {
        "labels": torch.int64,
        "colour": torch.int64,
    }
    assert isinstance(batch.condition, Condition)
