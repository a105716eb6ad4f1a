"""The training loop of every stage: codec, features, teacher, weak teacher, student, adversarial finish.

Stages differ by their phases (which module is trained with which loss) and by what is frozen inside the losses.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ayf_core.errors import AyfError, Preempted
from ayf_core.objectives.base import Batch
from ayf_core.precision import matrix_products
from ayf_core.randomness import StepRandom, derive_seed
from ayf_core.training.checkpoints import State, load_state
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import ShuffledOrder, TrainingData
from ayf_core.training.memory import free_bytes, peak_bytes, samples_that_fit
from ayf_core.training.micro_batches import NEIGHBOURS, MicroBatch, micro_batches_of
from ayf_core.training.options import LoopOptions
from ayf_core.training.parallel import least_of_workers, reshard
from ayf_core.training.phases import Phase, PhaseRunner
from ayf_core.training.read_ahead import ReadAhead
from ayf_core.training.sharding import gathered
from ayf_core.training_settings import TrainingSettings


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

    In a step that is neither logged nor saved the host waits for the device nowhere: it goes on to give out the next.

    Args:
        phases: what is trained, in order.
        data: the samples.
        settings: of the training, for all phases.
        context: this worker's rank, device, checkpoints and log.
        callbacks: followers, called after each step.
        seed: of data order and of every draw.
        options: how the loop is run.

    Raises:
        AyfError: where there are more workers than samples in the global batch, gradients are not synchronised
            across them, or gradients stay non-finite.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        data: TrainingData,
        settings: TrainingSettings,
        context: TrainingContext,
        callbacks: Sequence[Callback] = (),
        *,
        seed: int,
        options: LoopOptions | None = None,
    ):
        self.data = data
        self.settings = settings
        self.context = context
        self.callbacks = list(callbacks)
        self.seed = seed
        self.options = options or LoopOptions()
        self.order = ShuffledOrder(len(data), settings.batch_size, seed)
        largest = self.options.micro_batch
        self.micro_batches = self._cut(largest if isinstance(largest, int) else None)
        self.step = 0
        self.phases = [PhaseRunner(phase, settings, context, self.options) for phase in phases]
        self._ahead: ReadAhead | None = None

    @property
    def skipped(self) -> int:
        """Optimiser steps not taken, of all phases. Waits for the device."""
        return sum(phase.skipped for phase in self.phases)

    def fit(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            Preempted: a stop was asked for; there is a checkpoint of the step it names.
        """
        self._resume()
        try:
            with matrix_products(self.settings.precision):
                if self.options.micro_batch == "auto":
                    self.micro_batches = self._cut(self._largest_micro_batch())
                self._train()
        finally:
            self.close()
            self.context.wait()

    def advance(self) -> None:
        """One step: every phase, then the followers; its metrics to the log where they are due."""
        done = self.step + 1
        monitor = done % self.options.log_every == 0 or done in (1, self.settings.steps)
        # Dropout and the like would draw from the global generator: give each step its own, on each worker.
        torch.manual_seed(derive_seed(self.seed, "global", self.step, self.context.rank))
        metrics: dict[str, Tensor] = {}
        for phase in self.phases:
            own = phase.update(self.micro_batches, self._batches(), self.step, monitor)
            prefix = "" if phase is self.phases[0] else f"{phase.name}/"
            metrics |= {prefix + name: value for name, value in own.items()}
        for phase in self.phases:
            reshard(phase.network)
        if monitor:
            self._check()
        self.step = done
        for callback in self.callbacks:
            callback.after_step(self.step)
        if monitor:
            self._log(metrics)

    def close(self) -> None:
        """End what reads ahead. `fit` does so itself."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _train(self) -> None:
        while self.step < self.settings.steps:
            self.advance()
            if self.step == self.settings.steps:
                return
            stopping = self.context.stop_asked()
            if stopping or self.step % self.options.checkpoint_every == 0:
                self._check()
                self.context.save_checkpoint(self.step, self._state())
            if stopping:
                self.context.wait()
                raise Preempted(self.step)

    def _cut(self, largest: int | None) -> list[MicroBatch]:
        return micro_batches_of(self.settings.batch_size, self.context.world_size, self.context.rank, largest)

    def _largest_micro_batch(self) -> int:
        """How many samples fit on every worker, by trying a few; the same on all.

        Raises:
            AyfError: not even a few do.
        """
        context = self.context
        own = self.micro_batches[0].rows
        share = -(-self.settings.batch_size // context.world_size)
        few = (min(NEIGHBOURS, -(-share // 2)), min(2 * NEIGHBOURS, share))
        for callback in self.callbacks:
            callback.state_dict()  # what it holds is made when first asked for
        free = free_bytes(context.device, context.world_size)
        if few[0] == few[1] or free is None:
            return share

        def try_out(phase: PhaseRunner, count: int) -> None:
            rows = slice(own.start, own.start + count)
            random = StepRandom(self.seed, self.step, rows, context.device)
            read = {name: tensor.to(context.device) for name, tensor in self._read((self.step, rows)).items()}
            phase.try_out(self.data.batch(read, random), random, self.step)
            reshard(phase.network)

        def peak_of(count: int) -> int:
            for phase in self.phases:
                try_out(phase, count)  # the first call also makes what is kept, as compiled code
            return max(peak_bytes(partial(try_out, phase, count), context.device) for phase in self.phases)

        free -= sum(phase.bytes_to_come() for phase in self.phases)
        fits = least_of_workers(samples_that_fit(peak_of, few, free), context)
        if fits < 1:
            raise AyfError(
                f"not one sample fits into the {free / 2**30:.2f} GiB that are left: set activation_checkpointing or "
                "sharding: full (over several workers) in the runtime"
            )
        return min(fits, share)

    def _batches(self) -> Iterator[tuple[Batch, StepRandom]]:
        """This worker's micro-batches of the present step, each with its draws."""
        if self._ahead is None:
            self._ahead = ReadAhead(self._read, self._requests(), self.context.device)
        for part in self.micro_batches:
            random = StepRandom(self.seed, self.step, part.rows, self.context.device)
            yield self.data.batch(self._ahead.take(), random), random

    def _requests(self) -> Iterator[tuple[int, slice]]:
        """Which rows of which step are read, in the order in which the phases use them."""
        for step in range(self.step, self.settings.steps):
            for _ in self.phases:
                for part in self.micro_batches:
                    yield step, part.rows

    def _read(self, request: tuple[int, slice]) -> Mapping[str, Tensor]:
        return self.data.read(self.order.indices(*request))

    def _check(self) -> None:
        for phase in self.phases:
            phase.check(self.step)

    def _log(self, metrics: dict[str, Tensor]) -> None:
        values = {name: float(value) for name, value in metrics.items()} | {"skipped_steps": float(self.skipped)}
        if self.options.micro_batch == "auto":
            values["micro_batch"] = max(part.rows.stop - part.rows.start for part in self.micro_batches)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.context.log(self.step, self.settings.steps, finite)

    def _state(self) -> State:
        """All there is to save, the same whatever it is spread over; every worker takes part, rank 0 gets it."""
        state = {
            "step": self.step,
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
        self.step = state["step"]
