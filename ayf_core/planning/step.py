"""What one optimiser step costs a worker, from taking that step with tensors that have shapes and no contents.

The step is the training's own: its networks, its objective, clipping, the optimiser and the averages. So nothing is
known here of any network, and one from a plug-in is counted like those that come with the project. A network that fake
tensors do not pass through (it looks at values, or calls foreign code) takes the step for real, on a few samples.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.files import first_line
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.objectives.base import Batch, Loss
from ayf_core.planning.meter import Operation, StepMeter, TooManyOperations
from ayf_core.randomness import StepRandom
from ayf_core.training.context import LocalContext
from ayf_core.training.ema import PowerFunctionEMA
from ayf_core.training.micro_batches import MicroBatch
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import Phase, PhaseRunner
from ayf_core.training_settings import TrainingSettings

PARTS = ("weights", "gradients", "optimiser", "averages", "frozen", "activations", "tangents", "backward", "other")
"""What memory is held for. `frozen`: networks that are not trained, and their passes. `activations`: what a forward
pass keeps and makes. `tangents`: what is made without a graph beside it, such as the derivative. `backward`: what the
backward pass makes besides gradients of weights. `other`: the batch, and what clipping and averaging make for a moment.
"""

BUCKETS, GATHERED = "buckets", "gathered"
"""What several workers need besides: room to bring gradients together; the weights of the blocks that compute."""

_MOST_OPERATIONS = 60_000
"""Of a step that is taken whole. A longer one (attention in chunks, a large batch) is extrapolated from small ones."""
_FEW, _TWICE = 8, 16
_FEW_REAL, _TWICE_REAL = 4, 8
"""Multiples of the four neighbours that a discriminator compares."""


@dataclass(frozen=True)
class Trained:
    """The networks and losses of a training, and the networks inside the losses that are frozen."""

    phases: Sequence[Phase]
    frozen: Sequence[nn.Module] = ()


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A training, as far as its cost goes.

    Attributes:
        shape: of one sample.
        conditions: names of whole numbers that come with each sample.
        build: makes the networks anew; called where they shall have their tensors.
        options: how its loop is run.
    """

    settings: TrainingSettings
    shape: tuple[int, ...]
    build: Callable[[], Trained]
    conditions: tuple[str, ...] = ("labels",)
    options: LoopOptions = field(default_factory=LoopOptions)

    def batch(self, rows: int, device: torch.device | str = "cpu") -> Batch:
        """Any batch of so many samples."""
        x = torch.randn(rows, *self.shape, device=device)
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        return Batch(x, Condition(dict.fromkeys(self.conditions, zeros)))


@dataclass(frozen=True)
class StepCost:
    """One optimiser step of one worker that holds everything itself.

    Attributes:
        parameters: that the first phase trains.
        frozen_parameters: of networks that are not trained.
        flops: of matrix products, convolutions and attention.
        memory: bytes by part, in the instant at which most are held.
        state: bytes that a checkpoint holds, by part (weights, optimiser, averages), of all phases.
        model: bytes of the network that the first phase trains.
        shared: share of the state that sharded training cuts: that of the networks that are large.
        gathered: bytes that it puts together again for a moment.
        operations: that are no mere views; instants: bytes held by part after each of them.
        scale: how many times as long as these operations the step is.
        exact: false where the step was extrapolated from smaller ones.
    """

    parameters: int
    frozen_parameters: int
    flops: float
    memory: Mapping[str, float]
    state: Mapping[str, int]
    model: int
    shared: float
    gathered: int
    operations: Sequence[Operation] = field(repr=False)
    instants: Sequence[Mapping[str, int]] = field(repr=False)
    scale: float = 1.0
    exact: bool = True

    @property
    def peak(self) -> float:
        """Bytes in the instant at which most are held."""
        return sum(self.memory.values())

    def on_workers(self, workers: int, sharded: bool, micro_batches: int = 1) -> dict[str, float]:
        """Memory of each of several workers, bytes by part, if the step is what each of them does.

        Without sharding every worker holds everything, and DistributedDataParallel a bucket for each gradient. Sharded,
        it holds its piece of the large networks, and for a moment a block's weights and those of the next (FSDP2);
        gradients that wait for the last micro-batch are whole.
        """
        memory = dict(self.memory)
        if workers == 1:
            return memory
        if not sharded:
            return memory | {BUCKETS: float(self.state["weights"])}
        left = 1 - self.shared + self.shared / workers
        cut = ("weights", "optimiser", "averages", *(("gradients",) if micro_batches == 1 else ()))
        return {part: size * left if part in cut else size for part, size in memory.items()} | {
            GATHERED: float(self.gathered)
        }


class StepRunner:
    """The step of a training without its loop: all phases, then the averages.

    Args:
        draws: makes the random numbers of so many rows.
    """

    def __init__(
        self, planned: Planned, trained: Trained, context: LocalContext, draws: Callable[[int], StepRandom]
    ) -> None:
        self.phases = [PhaseRunner(phase, planned.settings, context, planned.options) for phase in trained.phases]
        self.draws = draws
        for network in trained.frozen:
            network.to(context.device)
        self.averages = PowerFunctionEMA(trained.phases[0].network, planned.settings.ema_stds)
        self.step = 0

    def fill_optimisers(self) -> None:
        """Make the moments that a first step would make, without its passes."""
        for phase in self.phases:
            for parameter in phase.network.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            phase.optimizer.step()
            phase.optimizer.zero_grad(set_to_none=True)

    def __call__(self, batch: Batch, micro_batches: int = 1) -> None:
        """One step of so many micro-batches, each of them this batch."""
        rows = len(batch.x)
        parts = [MicroBatch(slice(0, rows), 1 / micro_batches)] * micro_batches
        for phase in self.phases:
            phase.update(parts, [(batch, self.draws(rows)) for _ in parts], self.step, monitor=False)
        self.step += 1
        self.averages.update(self.step)


def step_cost(planned: Planned, rows: int, micro_batches: int = 1, *, never_real: bool = False) -> StepCost:
    """One step of `micro_batches` forward and backward passes of `rows` samples each.

    Args:
        never_real: take no step with real tensors, which costs the memory of the networks.

    Raises:
        AyfError: the network cannot take such a step, with fake tensors or real ones.
        Exception: with `never_real`, whatever a network raises that fake tensors do not pass through.
    """
    try:
        return _with_fake_tensors(planned, rows, micro_batches)
    except AyfError:
        raise
    except Exception as error:
        if never_real:
            raise
        logging.getLogger(__name__).info("a step with fake tensors fails (%s): taken for real", first_line(error))
    try:
        if rows <= _TWICE_REAL:
            return _taken(planned, rows, micro_batches, _draws)
        small, large = (_taken(planned, few, micro_batches, _draws) for few in (_FEW_REAL, _TWICE_REAL))
    except AyfError:
        raise
    except Exception as error:
        raise AyfError(
            f"a step on samples {list(planned.shape)} fails with {type(error).__name__}: {first_line(error)}"
        ) from error
    return _extrapolated(small, large, _FEW_REAL, _TWICE_REAL, rows)


def _with_fake_tensors(planned: Planned, rows: int, micro_batches: int) -> StepCost:
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = dataclasses.replace(planned, build=lambda: _staying(planned.build()))
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            return _taken(fake, rows, micro_batches, _NoDraws, _MOST_OPERATIONS)
        except TooManyOperations:
            small, large = (_taken(fake, few, micro_batches, _NoDraws) for few in (_FEW, _TWICE))
    return _extrapolated(small, large, _FEW, _TWICE, rows)


def _staying(trained: Trained) -> Trained:
    """The same networks, made where they shall be: `to` fails on a fake tensor that somebody refers to weakly."""
    for network in (*(phase.network for phase in trained.phases), *trained.frozen):
        network.to = lambda *_, network=network, **__: network  # type: ignore[method-assign]
    return trained


def _taken(
    planned: Planned,
    rows: int,
    micro_batches: int,
    draws: Callable[[int], StepRandom],
    most_operations: int | None = None,
) -> StepCost:
    """The cost of a step, by taking it; of many micro-batches, two are taken."""
    taken = min(micro_batches, 2)
    meter = StepMeter(most_operations)
    with TemporaryDirectory() as folder, meter:
        trained = planned.build()
        watched = dataclasses.replace(trained, phases=[_watched(phase, meter) for phase in trained.phases])
        runner = StepRunner(planned, watched, LocalContext(Path(folder)), draws)
        _watch_frozen(trained, meter)
        runner.fill_optimisers()
        _sort(runner, trained, meter)
        batch = planned.batch(rows)
        meter.begin()
        runner(batch, taken)
    first = trained.phases[0].network
    state = {part: meter.live(part) for part in ("weights", "optimiser", "averages")}
    large = [phase.network for phase in trained.phases if isinstance(phase.network, MeanVelocityNetwork)]
    return StepCost(
        parameters=_numbers(first),
        frozen_parameters=sum(_numbers(network) for network in trained.frozen),
        flops=meter.flops * micro_batches / taken,
        memory={part: float(meter.peak.get(part, 0)) for part in PARTS},
        state=state,
        model=_bytes(first),
        shared=sum(map(_bytes, large)) / max(1, sum(_bytes(phase.network) for phase in trained.phases)),
        gathered=sum(_gathered(network) for network in large),
        operations=meter.operations,
        instants=meter.instants,
        scale=micro_batches / taken,
    )


def _sort(runner: StepRunner, trained: Trained, meter: StepMeter) -> None:
    """Say of all that is held before a step what it is."""
    for network in trained.frozen:
        meter.assign_module(network, "frozen")
    for phase in runner.phases:
        meter.assign_module(phase.network, "weights")
        moments = (value for entry in phase.optimizer.state.values() for value in entry.values())
        meter.assign([value for value in moments if isinstance(value, Tensor)], "optimiser")
        for parameter in phase.network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda p: meter.assign([p.grad] if p.grad is not None else [], "gradients")
                )
    for average in runner.averages.averages.values():
        meter.assign(average.values(), "averages")


def flops_of(call: Callable[[], object]) -> tuple[float, float]:
    """FLOPs of a call without gradients, and the bytes in the instant at which most are held.

    Raises:
        AyfError: what is called does not run, neither with fake tensors nor with real ones.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    failure: Exception | None = None
    for mode in (FakeTensorMode(allow_non_fake_inputs=True), nullcontext()):
        meter = StepMeter()
        try:
            with mode, meter, torch.no_grad():
                call()
            return meter.flops, float(sum(meter.peak.values()))
        except AyfError:
            raise
        except Exception as error:
            failure = error
    assert failure is not None
    raise AyfError(f"a pass fails with {type(failure).__name__}: {first_line(failure)}")


def _watched(phase: Phase, meter: StepMeter) -> Phase:
    """The phase, with an objective that tells the meter what its tensors are."""
    objective = phase.objective

    def watched(network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        with meter.counted_as("activations", without_graph="tangents"):
            loss = objective(network, batch, random, step, monitor)
        meter.part = "backward"
        return loss

    return dataclasses.replace(phase, objective=watched)


def _watch_frozen(trained: Trained, meter: StepMeter) -> None:
    for network in trained.frozen:
        passes = ExitStack()
        network.register_forward_pre_hook(
            lambda *_, passes=passes: passes.enter_context(meter.counted_as("frozen")) and None
        )
        network.register_forward_hook(lambda *_, passes=passes: passes.close(), always_call=True)


def _extrapolated(small: StepCost, large: StepCost, few: int, more: int, rows: int) -> StepCost:
    """The cost for `rows`, where a step of `few` costs `small` and one of `more` costs `large`.

    What is held in an instant is linear in the rows, and so the peak is the largest of the lines' ends; where the two
    steps do not do the same operations, the peak itself is taken for linear.
    """

    def line(low: float, high: float) -> float:
        return max(0.0, low + (high - low) * (rows - few) / (more - few))

    alike = len(small.instants) == len(large.instants)
    pairs = zip(small.instants, large.instants, strict=True) if alike else [(small.memory, large.memory)]
    ends = ({part: line(a.get(part, 0), b.get(part, 0)) for part in PARTS} for a, b in pairs)
    flops = line(small.flops, large.flops)
    return dataclasses.replace(
        large,
        flops=flops,
        memory=max(ends, key=lambda memory: sum(memory.values())),
        scale=large.scale * flops / max(1.0, large.flops),
        exact=False,
    )


def _draws(rows: int) -> StepRandom:
    return StepRandom(0, 0, rows)


class _NoDraws(StepRandom):
    """Random numbers that have a shape and no contents, where nobody looks at them."""

    def __init__(self, rows: int) -> None:
        super().__init__(0, 0, rows)

    def _words(self, name: str, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        made = [torch.empty(self.rows.stop, blocks, dtype=torch.int64) for _ in range(4)]
        return made[0], made[1], made[2], made[3]


def _numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def _gathered(network: MeanVelocityNetwork) -> int:
    """What a worker of a sharded training holds whole: all that is in no block, a block, the next, and its gradient."""
    blocks = [_bytes(block) for block in network.sharded_blocks]
    return _bytes(network) - sum(blocks) + 3 * max(blocks, default=0)
