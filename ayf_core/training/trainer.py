"""The training loop of every stage: codec, features, teacher, weak teacher, student, adversarial finish.

Stages differ by their phases (which module is trained with which loss) and by what is frozen inside the losses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ayf_core.errors import AyfError
from ayf_core.objectives.base import Batch, Loss, Objective
from ayf_core.randomness import StepRandom, derive_seed
from ayf_core.tangents import unwrap
from ayf_core.training.checkpoints import load_state, save_state
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import ShuffledOrder, TrainingData
from ayf_core.training.optimisers import OptimiserSettings, build_optimiser, learning_rate

SKIPPED_IN_A_ROW = 20
"""So many steps with a non-finite gradient in a row end the training: it will not recover by itself."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Length and batch (which change the result), cadence and micro-batch (which do not).

    Args:
        steps: optimiser steps.
        batch_size: the global batch, over all workers and micro-batches.
        seed: of data order and of every draw.
        micro_batch: most samples in one forward pass on one worker; accumulation follows from it.
        log_every, checkpoint_every: in steps.
    """

    steps: int
    batch_size: int
    seed: int
    micro_batch: int | None = None
    log_every: int = 50
    checkpoint_every: int = 500


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

    def prepare(self, context: TrainingContext) -> None:
        """Move to the device, wrap for data-parallel training, build the optimiser."""
        self.network.to(context.device).train()
        self.wrapped = self.network
        if context.world_size > 1:
            ids = [context.device.index] if context.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.network, device_ids=ids)
        self.optimizer = build_optimiser(self.network, self.optimiser)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
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
        AyfError: where the global batch does not divide over the workers, gradients are not synchronised
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
        self.micro_batches = rows_of_micro_batches(
            settings.batch_size, context.world_size, context.rank, settings.micro_batch
        )
        self.step = 0
        self.skipped = 0
        self.checked = False
        for phase in self.phases:
            phase.prepare(context)

    def fit(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one."""
        self._resume()
        while self.step < self.settings.steps:
            done = self.step + 1
            monitor = done % self.settings.log_every == 0 or done in (1, self.settings.steps)
            # Dropout and the like draw from the global generator: give each step its own, on each worker.
            torch.manual_seed(derive_seed(self.settings.seed, "global", self.step, self.context.rank))
            metrics: dict[str, Tensor] = {}
            for phase in self.phases:
                metrics |= self._update(phase, monitor)
            self.checked = True
            self.step = done
            for callback in self.callbacks:
                callback.after_step(self.step)
            if monitor:
                self._log(metrics)
            if self.step % self.settings.checkpoint_every == 0 and self.step < self.settings.steps:
                self.context.save_checkpoint(self.step, self._write)

    def _update(self, phase: Phase, monitor: bool) -> dict[str, Tensor]:
        """One optimiser step of one phase: accumulate, check, clip, guard, descend."""
        phase.optimizer.zero_grad(set_to_none=True)
        share = 1 / len(self.micro_batches)
        noted: dict[str, list[Tensor]] = {}
        for i, rows in enumerate(self.micro_batches):
            last = i == len(self.micro_batches) - 1
            loss = self._loss(phase, rows, monitor, synchronise=last)
            (share * loss.value).backward()
            for name, value in loss.metrics.items():
                noted.setdefault(name, []).append(value.detach())
        # A bin that is empty in one micro-batch is NaN there, and not in all of the step.
        metrics = {name: torch.stack(values).nanmean() for name, values in noted.items()}
        if not self.checked:
            check_gradients_are_synchronised(phase.network, phase.name)
        limit = phase.optimiser.gradient_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(phase.network.parameters(), limit)
        rate = learning_rate(phase.optimiser, self.step, self.settings.steps)
        if self._is_finite(norm, phase):
            for group in phase.optimizer.param_groups:
                group["lr"] = rate
            phase.optimizer.step()
        metrics |= {"gradient_norm": norm, "learning_rate": torch.tensor(rate)}
        prefix = "" if len(self.phases) == 1 or phase is self.phases[0] else f"{phase.name}/"
        return {prefix + name: value for name, value in metrics.items()}

    def _loss(self, phase: Phase, rows: slice, monitor: bool, synchronise: bool) -> Loss:
        device = self.context.device
        random = StepRandom(self.settings.seed, self.step, self.settings.batch_size, rows, device)
        samples = self.data.batch(self.order.indices(self.step)[rows], random)
        batch = Batch(samples.x.to(device), samples.labels.to(device))
        if isinstance(phase.wrapped, DistributedDataParallel):
            phase.wrapped.require_backward_grad_sync = synchronise
        return phase.objective(phase.wrapped, batch, random, self.step, monitor)

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

    def _write(self, folder: Any) -> None:
        save_state(
            folder,
            {
                "step": self.step,
                "skipped": self.skipped,
                "phases": {phase.name: phase.state_dict() for phase in self.phases},
                "callbacks": {callback.name: callback.state_dict() for callback in self.callbacks},
            },
        )

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


def rows_of_micro_batches(global_batch: int, workers: int, rank: int, micro_batch: int | None) -> list[slice]:
    """The rows of the global batch that one worker trains on, cut into equal micro-batches.

    Raises:
        AyfError: if the workers cannot share the global batch equally.
    """
    if global_batch % workers:
        raise AyfError(f"the global batch {global_batch} does not divide over {workers} workers: change either")
    own = global_batch // workers
    pieces = 1
    while own % pieces or (micro_batch and own // pieces > micro_batch):
        pieces += 1
    size = own // pieces
    return [slice(rank * own + i * size, rank * own + (i + 1) * size) for i in range(pieces)]


def check_gradients_are_synchronised(network: nn.Module, name: str) -> None:
    """Compare the gradients of all workers after the first backward pass.

    A forward-mode pass on the bare module inside DistributedDataParallel trains without synchronising, silently;
    this makes it loud. One collective call, once a training.

    Raises:
        AyfError: on every worker, if any two differ.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    own = torch.stack([p.grad.double().square().sum() for p in unwrap(network).parameters() if p.grad is not None])
    own = own.nan_to_num()  # a gradient that is not finite is the non-finite guard's to name
    everyone = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, own)
    spread = max(float((other - everyone[0]).abs().max()) for other in everyone)
    if not spread <= 1e-6 * float(everyone[0].abs().max()) + 1e-30:
        raise AyfError(
            f"workers hold different gradients for '{name}' after the first step: they are not synchronised; "
            "the objective must call the wrapped network, not the bare module"
        )
