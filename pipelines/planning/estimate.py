"""What each stage of the chain costs on a runtime: memory of a worker, seconds, disk."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ayf_core.conditions import Condition
from ayf_core.planning.hardware import MATRIX_FRACTION, RESERVED_BYTES, Hardware, hardware_named
from ayf_core.planning.step import Planned, StepCost, flops_of, step_cost
from ayf_core.planning.timing import expected_step, measured_step
from ayf_core.registry import find
from ayf_core.sampling.samplers import sampler_of
from ayf_core.training.callbacks import SNAPSHOTS
from ayf_core.training.checkpoint_folder import CHECKPOINTS_KEPT
from ayf_core.training.micro_batches import micro_batches_of
from ayf_core.training.options import LoopOptions
from pipelines.execution.shares import worker_threads
from pipelines.machine import core_count, memory_bytes
from pipelines.planning.chain import Chain
from pipelines.stages.distill import guidance_of
from pipelines.stages.encode_latents import BATCH

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

COPIES = 3
"""Of a finished output: in the stage's scratch, at its declared path, in DVC's cache."""
_MEASURABLE = 0.8
"""Share of this machine's memory that a step to be timed may take."""


@dataclass(frozen=True)
class Device:
    """What a worker computes on.

    Attributes:
        memory: bytes that one worker can have.
        hardware: its data sheet; None where steps are timed here.
    """

    title: str
    memory: float
    kind: str
    hardware: Hardware | None = None

    @classmethod
    def of(cls, runtime: RuntimeConfig) -> Device:
        """The card that the runtime names, else what this machine has for each of its workers."""
        if runtime.hardware is not None:
            card = hardware_named(runtime.hardware)
            return cls(card.title, card.memory - RESERVED_BYTES, "cuda", card)
        if runtime.device != "cpu" and torch.cuda.is_available():
            here = torch.cuda.get_device_properties(0)
            return cls(here.name, here.total_memory - RESERVED_BYTES, "cuda")
        workers = runtime.workers + runtime.teacher_workers
        threads = worker_threads(runtime)
        memory = max(0.0, memory_bytes() / workers - RESERVED_BYTES)
        return cls(f"this machine's CPU, {threads} thread{'s' * (threads > 1)} a worker", memory, "cpu")


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """One training stage. Bytes, seconds, FLOPs.

    Attributes:
        micro_batch: samples of a pass of one worker; micro_batches: passes of a step.
        checkpointed: activations are computed again.
        flops: of a step, all workers together.
        memory: of a worker, by part, in the instant at which most is held.
        seconds: of a step; None where it was not measured.
        source: where the seconds are from.
        disk_running: checkpoints and snapshots while it trains; disk_kept: what stays afterwards, all copies.
        exact: false where memory and FLOPs are extrapolated from smaller steps.
    """

    stage: str
    parameters: int
    frozen_parameters: int
    steps: int
    batch_size: int
    workers: int
    devices: int
    micro_batch: int
    micro_batches: int
    checkpointed: bool
    flops: float
    memory: Mapping[str, float]
    memory_available: float
    seconds: float | None
    source: str
    disk_running: float
    disk_kept: float
    exact: bool

    @property
    def peak(self) -> float:
        """Bytes of a worker in the instant at which most are held."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.memory_available

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.steps * self.seconds / 3600

    @property
    def device_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.devices

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with what follows from it."""
        derived = {"peak": self.peak, "fits": self.fits, "hours": self.hours, "device_hours": self.device_hours}
        return {**dataclasses.asdict(self), "memory": dict(self.memory), **derived}


@dataclass(frozen=True, kw_only=True)
class PassesEstimate:
    """A stage that only computes forward passes, roughly: latents, an evaluation."""

    stage: str
    flops: float
    memory: float
    hours: float | None
    disk_kept: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Plan:
    """What the whole chain costs."""

    device: Device
    trainings: list[TrainingEstimate]
    passes: list[PassesEstimate]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return {
            "device": {"title": self.device.title, "memory": self.device.memory},
            "trainings": [each.to_dict() for each in self.trainings],
            "passes": [each.to_dict() for each in self.passes],
            "disk_kept": self.disk_kept,
        }

    @property
    def disk_kept(self) -> float:
        """Bytes that all outputs take."""
        return sum(each.disk_kept for each in self.trainings) + sum(each.disk_kept for each in self.passes)


def plan(chain: Chain, runtime: RuntimeConfig, *, measure: bool, tell: Callable[[str], None] = lambda _: None) -> Plan:
    """Every stage that computes for long, in the order of the chain.

    Args:
        measure: time a few steps where the runtime names no hardware.
        tell: is given the name of the stage that is being looked at.

    Raises:
        AyfError: a network cannot take a step.
    """
    device = Device.of(runtime)
    trainings = []
    for stage, planned in chain.trainings().items():
        tell(stage)
        trainings.append(estimate(stage, planned, runtime, device, measure=measure, codec_bytes=chain.codec_bytes))
    tell("encode_latents, evaluate")
    passes = list(_passes(chain, device, {each.stage: each for each in trainings}))
    return Plan(device, trainings, passes)


def estimate(
    stage: str,
    planned: Planned,
    runtime: RuntimeConfig,
    device: Device,
    *,
    measure: bool,
    codec_bytes: int = 0,
    never_real: bool = False,
) -> TrainingEstimate:
    """One training.

    Args:
        codec_bytes: of the codec that a model's folder holds a copy of.
        never_real: see `step_cost`.

    Raises:
        AyfError: the network cannot take a step, or there are more workers than samples in a batch.
    """
    settings = planned.settings
    options = LoopOptions(activation_checkpointing=runtime.activation_checkpointing)
    planned = dataclasses.replace(planned, options=options)
    rows, count, cost, memory = _fitted(planned, runtime, device, never_real)
    seconds, source = _seconds(planned, cost, rows, count, runtime, device) if measure else (None, "not measured")
    if device.hardware is not None:
        tf32 = settings.precision == "tf32"
        seconds = expected_step(cost, device.hardware, tf32=tf32, compiled=runtime.compile)
        source = f"from the data sheet of {runtime.hardware}"
    teachers = runtime.teacher_workers if stage.startswith(("distill@", "finetune_adversarial")) else 0
    snapshots = SNAPSHOTS * len(settings.ema_stds) * cost.model
    output = cost.model + (0 if stage in ("train_codec", "train_features") else snapshots + codec_bytes)
    return TrainingEstimate(
        stage=stage,
        parameters=cost.parameters,
        frozen_parameters=cost.frozen_parameters,
        steps=settings.steps,
        batch_size=settings.batch_size,
        workers=runtime.workers,
        devices=runtime.workers + teachers,
        micro_batch=rows,
        micro_batches=count,
        checkpointed=runtime.activation_checkpointing,
        flops=cost.flops * runtime.workers,
        memory={part: size for part, size in memory.items() if size},
        memory_available=device.memory,
        seconds=seconds,
        source=source,
        # One more checkpoint than is kept while the newest is being written.
        disk_running=(CHECKPOINTS_KEPT + 1) * sum(cost.state.values()) + snapshots,
        disk_kept=snapshots + COPIES * output,
        exact=cost.exact,
    )


def _fitted(
    planned: Planned, runtime: RuntimeConfig, device: Device, never_real: bool
) -> tuple[int, int, StepCost, dict[str, float]]:
    """Rows and number of micro-batches, the step's cost, its memory; of `micro_batch: auto`, the largest that fits."""
    wanted = runtime.micro_batch
    largest = wanted if isinstance(wanted, int) else None
    while True:
        parts = micro_batches_of(planned.settings.batch_size, runtime.workers, 0, largest)
        rows = max(part.rows.stop - part.rows.start for part in parts)
        cost = step_cost(planned, rows, len(parts), never_real=never_real)
        memory = cost.on_workers(runtime.workers, runtime.sharding == "full", len(parts))
        if wanted != "auto" or rows == 1 or sum(memory.values()) <= device.memory:
            return rows, len(parts), cost, memory
        largest = rows // 2


def _seconds(
    planned: Planned, cost: StepCost, rows: int, count: int, runtime: RuntimeConfig, device: Device
) -> tuple[float | None, str]:
    """Of a step, timed here, and what was timed."""
    if device.hardware is not None:
        return None, ""
    if cost.peak > _MEASURABLE * device.memory:
        return None, "not measured: a step does not fit here"
    before = torch.get_num_threads()
    torch.set_num_threads(worker_threads(runtime))
    try:
        timing = measured_step(planned, rows, device.kind)
    finally:
        torch.set_num_threads(before)
    busy = ", on a busy machine" if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * core_count() else ""
    return timing.seconds * count, f"measured with {timing.rows} of {rows} samples{busy}"


def _passes(chain: Chain, device: Device, trained: Mapping[str, TrainingEstimate]) -> Iterator[PassesEstimate]:
    config, data = chain.config, chain.data
    rows = min(BATCH, data.train)
    numbers = math.prod(chain.latents.shape)
    flops, memory = flops_of(lambda: chain.fake_codec().encode(torch.zeros(rows, *data.shape)))
    total = flops / rows * (data.train + data.test)
    yield PassesEstimate(
        stage="encode_latents",
        flops=total,
        memory=memory,
        hours=_hours(total, trained.get("train_codec"), device),
        disk_kept=COPIES * (data.train + data.test) * (2 * 4 * numbers + 8),  # mean and std in float32, the label
    )
    for model in config.evaluation.models:
        yield _evaluation(chain, model, device, trained)


def _evaluation(chain: Chain, model: str, device: Device, trained: Mapping[str, TrainingEstimate]) -> PassesEstimate:
    """Drawing all samples that an evaluation measures; the measures themselves are not in it."""
    asked = chain.config.evaluation
    rows = min(asked.batch_size, chain.data.train)
    is_teacher = model in ("teacher", "weak_teacher")
    once, memory = flops_of(lambda: _call(chain, model, rows))
    decoded, memory_of_decoding = flops_of(lambda: chain.fake_codec().decode(torch.zeros(rows, *chain.latents.shape)))
    student = chain.config.adversarial.student if model == "adversarial" else model
    limits = None if is_teacher else guidance_of(chain.config.distill, student).range
    with torch.device("meta"):
        sampler: Any = sampler_of("velocity" if is_teacher else "flow_map", chain.network(model), limits)
        guidance = find("guidance", chain.config.distill.guidance.kind)
        if model == "teacher" and guidance.facts["needs_scale"]:
            strong, weak = chain.network(model), chain.network("weak_teacher")
            sampler = sampler.guided_by(guidance.load().build(strong, weak, strong.spec.conditions))
    guided = sampler.guidance_curve(asked)
    twice = 2 if model == "teacher" else 1  # guidance asks both networks, or one of them twice
    calls = sum(sampler.evaluations(asked)) + sum(n for n, _ in sampler.gamma_curve(asked))
    calls += twice * sum(n for n, _ in guided)
    curves = len(sampler.evaluations(asked)) + len(sampler.gamma_curve(asked)) + len(guided)
    samples = asked.seeds * chain.data.train
    total = samples * (calls * once + curves * decoded) / rows
    return PassesEstimate(
        stage=f"evaluate@{model}",
        flops=total,
        memory=max(memory, memory_of_decoding),
        hours=_hours(total, trained.get(_stage_of(model, trained)), device),
        disk_kept=0.0,
    )


def _call(chain: Chain, model: str, rows: int) -> None:
    network = chain.network(model).eval()
    t = torch.ones(rows)
    scale = t if network.spec.guidance else None
    labels = Condition(labels=torch.zeros(rows, dtype=torch.int64)).only(network.spec.conditions)
    network(torch.zeros(rows, *chain.latents.shape), t, 0 * t, labels, scale)


def _stage_of(model: str, trained: Mapping[str, TrainingEstimate]) -> str:
    names = (f"train_{model}", f"distill@{model}", f"train_flow_map@{model}", f"finetune_{model}")
    return next((name for name in names if name in trained), "")


def _hours(flops: float, alike: TrainingEstimate | None, device: Device) -> float | None:
    """At the rate of the training of the same network; else at the assumed share of a card's peak."""
    if alike is not None and alike.seconds:
        return flops * alike.seconds * alike.workers / alike.flops / 3600
    if device.hardware is not None:
        return flops / (MATRIX_FRACTION * device.hardware.float32) / 3600
    return None
