"""The training loop of every stage: codec, features, teacher, weak teacher, student, adversarial finish.

Stages differ by their phases (which module is trained with which loss) and by what is frozen inside the losses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ayf_core.errors import AyfError, Preempted
from ayf_core.objectives.base import Loss, Objective
from ayf_core.randomness import StepRandom, derive_seed
from ayf_core.training.checkpoints import State, load_state
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import ShuffledOrder, TrainingData
from ayf_core.training.optimisers import OptimiserSettings, build_optimiser, learning_rate
from ayf_core.training.parallel import (
    check_gradients_are_synchronised,
    clip_gradients,
    distribute,
    load_network_state,
    load_optimizer_state,
    mean_over_workers,
    settle,
    synchronise,
)
from ayf_core.training.shards import gathered
from ayf_core.training.shares import micro_batches_of

SKIPPED_IN_A_ROW = 20
"""So many steps with a non-finite gradient in a row end the training: it will not recover by itself."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Length and batch (which change the result), cadence, micro-batch and sharding (which do not).

    Args:
        steps: optimiser steps.
        batch_size: the global batch, over all workers and micro-batches.
        seed: of data order and of every draw.
        micro_batch: most samples in one forward pass on one worker; accumulation follows from it.
        log_every, checkpoint_every: in steps.
        sharding: over several workers: none = each holds everything, full = each holds a piece of every weight.
    """

    steps: int
    batch_size: int
    seed: int
    micro_batch: int | None = None
    log_every: int = 50
    checkpoint_every: int = 500
    sharding: str = "none"


@dataclass
class Phase:
    """One optimiser and what it descends. The phases of a step run one after the other on the same batch."""

    name: str
    network: nn.Module
    objective: Objective
    optimiser: OptimiserSettings
    wrapped: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    skipped_in_a_row: int = field(init=False, default=0)

    def prepare(self, context: TrainingContext, sharding: str) -> None:
        """Move to the device, wrap or shard for several workers, build the optimiser."""
        self.wrapped = distribute(self.network.train(), context, sharding)
        self.optimizer = build_optimiser(self.network, self.optimiser)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_network_state(self.network, state["network"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.skipped_in_a_row = state["skipped_in_a_row"]


class Callback(Protocol):
    """Something that follows the training and owns its state (an EMA, snapshots, ...)."""

    name: str

    def after_step(self, step: int) -> None:
        """Called when `step` optimiser steps are finished."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer:
    """Runs the phases for a number of steps, with checkpoints that hold everything.

    Args:
        phases: what is trained, in order.
        data: the samples.
        settings: length, batch, cadence.
        context: this worker's rank, device, checkpoints and log.
        callbacks: followers, called after each step.

    Raises:
        AyfError: where there are more workers than samples in the global batch, gradients are not synchronised
            across them, or gradients stay non-finite.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        data: TrainingData,
        settings: LoopSettings,
        context: TrainingContext,
        callbacks: Sequence[Callback] = (),
    ):
        self.phases = list(phases)
        self.data = data
        self.settings = settings
        self.context = context
        self.callbacks = list(callbacks)
        self.order = ShuffledOrder(len(data), settings.batch_size, settings.seed)
        self.micro_batches = micro_batches_of(
            settings.batch_size, context.world_size, context.rank, settings.micro_batch
        )
        self.step = 0
        self.skipped = 0
        self.checked = False
        for phase in self.phases:
            phase.prepare(context, settings.sharding)

    def fit(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            Preempted: a stop was asked for; there is a checkpoint of the step it names.
        """
        self._resume()
        try:
            self._train()
        finally:
            self.context.wait()

    def advance(self) -> None:
        """One step: every phase, then the followers; its metrics to the log where they are due."""
        done = self.step + 1
        monitor = done % self.settings.log_every == 0 or done in (1, self.settings.steps)
        # Dropout and the like would draw from the global generator: give each step its own, on each worker.
        torch.manual_seed(derive_seed(self.settings.seed, "global", self.step, self.context.rank))
        metrics: dict[str, Tensor] = {}
        for phase in self.phases:
            metrics |= self._update(phase, monitor)
        for phase in self.phases:
            settle(phase.network)
        self.checked = True
        self.step = done
        for callback in self.callbacks:
            callback.after_step(self.step)
        if monitor:
            self._log(metrics)

    def _train(self) -> None:
        while self.step < self.settings.steps:
            self.advance()
            if self.step == self.settings.steps:
                return
            stopping = self.context.stop_asked()
            if stopping or self.step % self.settings.checkpoint_every == 0:
                self.context.save_checkpoint(self.step, self._state())
            if stopping:
                self.context.wait()
                raise Preempted(self.step)

    def _update(self, phase: Phase, monitor: bool) -> dict[str, Tensor]:
        """One optimiser step of one phase: accumulate, check, clip, guard, descend."""
        phase.optimizer.zero_grad(set_to_none=True)
        noted: list[dict[str, Tensor]] = []
        for i, part in enumerate(self.micro_batches):
            synchronise(phase.wrapped, i == len(self.micro_batches) - 1)
            loss = self._loss(phase, part.rows, monitor)
            (part.weight * loss.value).backward()
            noted.append({name: value.detach() for name, value in loss.metrics.items()})
        metrics = self._mean(noted) if monitor else {}
        if not self.checked:
            check_gradients_are_synchronised(phase.network, phase.name)
        norm = clip_gradients(phase.network, phase.optimiser.gradient_clip or float("inf"))
        rate = learning_rate(phase.optimiser, self.step, self.settings.steps)
        if self._is_finite(norm, phase):
            for group in phase.optimizer.param_groups:
                group["lr"] = rate
            phase.optimizer.step()
        metrics |= {"gradient_norm": norm, "learning_rate": torch.tensor(rate)}
        prefix = "" if len(self.phases) == 1 or phase is self.phases[0] else f"{phase.name}/"
        return {prefix + name: value for name, value in metrics.items()}

    def _loss(self, phase: Phase, rows: slice, monitor: bool) -> Loss:
        device = self.context.device
        random = StepRandom(self.settings.seed, self.step, self.settings.batch_size, rows, device)
        batch = self.data.batch(self.order.indices(self.step)[rows], random).to(device)
        return phase.objective(phase.wrapped, batch, random, self.step, monitor)

    def _mean(self, noted: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Of each metric over micro-batches and workers. A bin that is empty in some of them is NaN there."""
        if not noted[0]:
            return {}
        weights = torch.tensor([[part.weight] for part in self.micro_batches], dtype=torch.float64)
        values = torch.stack([torch.stack([value.double().cpu() for value in each.values()]) for each in noted])
        known = weights * values.isfinite()
        sums = (known * values.nan_to_num(0.0, 0.0, 0.0)).sum(dim=0).to(self.context.device)
        means = mean_over_workers(sums, known.sum(dim=0).to(self.context.device), self.context)
        return dict(zip(noted[0], means, strict=True))

    def _is_finite(self, norm: Tensor, phase: Phase) -> bool:
        if torch.isfinite(norm):
            phase.skipped_in_a_row = 0
            return True
        self.skipped += 1
        phase.skipped_in_a_row += 1
        if phase.skipped_in_a_row >= SKIPPED_IN_A_ROW:
            raise AyfError(
                f"the gradient of '{phase.name}' was not finite for {SKIPPED_IN_A_ROW} steps in a row, "
                f"the last one step {self.step}: lower its learning rate, or look for NaN in the data"
            )
        return False

    def _log(self, metrics: dict[str, Tensor]) -> None:
        values = {name: float(value) for name, value in metrics.items()} | {"skipped_steps": float(self.skipped)}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.context.log(self.step, self.settings.steps, finite)

    def _state(self) -> State:
        """All there is to save, the same whatever it is spread over; every worker takes part, rank 0 gets it."""
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "phases": {phase.name: phase.state_dict() for phase in self.phases},
            "callbacks": {callback.name: callback.state_dict() for callback in self.callbacks},
        }
        return gathered(state, keep=self.context.rank == 0)

    def _resume(self) -> None:
        folder = self.context.latest_checkpoint()
        if folder is None:
            return
        state = load_state(folder)
        try:
            for phase in self.phases:
                phase.load_state_dict(state["phases"][phase.name])
            for callback in self.callbacks:
                callback.load_state_dict(state["callbacks"][callback.name])
        except (AyfError, KeyError, RuntimeError, ValueError) as error:
            raise AyfError(
                f"checkpoint '{folder}' is of another training ({str(error).splitlines()[0]}): delete that folder"
            ) from None
        self.step, self.skipped = state["step"], state["skipped"]
