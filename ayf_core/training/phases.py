"""A phase of a training: what is trained with which loss, and its optimiser at work on one worker."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ayf_core.errors import AyfError
from ayf_core.objectives.base import Batch, Objective
from ayf_core.precision import compute_in
from ayf_core.randomness import StepRandom
from ayf_core.training.context import TrainingContext
from ayf_core.training.micro_batches import MicroBatch
from ayf_core.training.optimisers import build_optimiser, learning_rate
from ayf_core.training.options import LoopOptions
from ayf_core.training.parallel import (
    check_gradients_are_synchronised,
    clip_gradients,
    distribute,
    load_network_state,
    load_optimizer_state,
    mean_over_workers,
    synchronise,
)
from ayf_core.training.running import run_network
from ayf_core.training.sharding import is_sharded, local
from ayf_core.training_settings import TrainingSettings

SKIPPED_IN_A_ROW = 20
"""So many steps with a non-finite gradient in a row end the training: it will not recover by itself."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A network and what it descends. The phases of a step run one after the other on the same batch.

    Args:
        name: unique in its training.
        network: the bare module; its training wraps and moves it.
        objective: is called with the wrapped one.
        learning_rate: its own in place of the training's.
        differentiated_twice: a gradient of it is differentiated again. bfloat16 does not carry that, and compiled code
            cannot do it, so it is computed in float32 by ordinary code.
    """

    name: str
    network: nn.Module
    objective: Objective
    learning_rate: float | None = None
    differentiated_twice: bool = False


class PhaseRunner:
    """One phase at work: its network on the device, wrapped or sharded for several workers, and its optimiser.

    Whether a step is taken is decided on the device, by the optimiser's `found_inf`: the host never waits for a norm.

    Args:
        options: how the loop is run.

    Attributes:
        network: the bare module, on the device.
        wrapped: what the objective calls.
    """

    def __init__(
        self, phase: Phase, settings: TrainingSettings, context: TrainingContext, options: LoopOptions
    ) -> None:
        self.name = phase.name
        self.network = phase.network
        self.objective = phase.objective
        rate = settings.learning_rate if phase.learning_rate is None else phase.learning_rate
        self.settings = replace(settings, learning_rate=rate)
        self.context = context
        compute_in("float32" if phase.differentiated_twice else settings.precision, phase.network)
        self.wrapped = distribute(phase.network.train(), context, options.sharding)
        run_network(
            phase.network,
            compiled=options.compile and not phase.differentiated_twice,
            checkpointed=options.activation_checkpointing,
            sharded=is_sharded(phase.network),
        )
        self.optimizer = build_optimiser(phase.network, self.settings)
        self._guard = _NonFiniteGuard(context.device)
        self._checked = False

    @property
    def skipped(self) -> int:
        """Steps not taken, because their gradient was not finite. Waits for the device."""
        return int(self._guard.skipped)

    def update(
        self, parts: Sequence[MicroBatch], batches: Iterable[tuple[Batch, StepRandom]], step: int, monitor: bool
    ) -> dict[str, Tensor]:
        """One optimiser step: accumulate, clip, guard, descend. Returns its metrics where `monitor` asks for them."""
        self.optimizer.zero_grad(set_to_none=True)
        noted: list[dict[str, Tensor]] = []
        for i, (part, (batch, random)) in enumerate(zip(parts, batches, strict=True)):
            synchronise(self.wrapped, i == len(parts) - 1)
            loss = self.objective(self.wrapped, batch, random, step, monitor)
            (part.weight * loss.value).backward()
            noted.append({name: value.detach() for name, value in loss.metrics.items()})
        metrics = mean_of_metrics(noted, parts, self.context) if monitor else {}
        if not self._checked:
            check_gradients_are_synchronised(self.network, self.name)
            self._checked = True
        norm = clip_gradients(self.network, self.settings.gradient_clip)
        rate = learning_rate(self.settings, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # How torch's own gradient scaler tells a fused optimiser to leave everything as it is.
        self.optimizer.found_inf = self._guard.see(norm)  # type: ignore[attr-defined]
        self.optimizer.step()
        return metrics | {"gradient_norm": norm, "learning_rate": torch.tensor(rate)} if monitor else {}

    def try_out(self, batch: Batch, random: StepRandom, step: int) -> None:
        """A logged step's passes over a micro-batch, whose gradient is dropped."""
        synchronise(self.wrapped, False)
        self.objective(self.wrapped, batch, random, step, True).value.backward()
        self.optimizer.zero_grad(set_to_none=True)

    def bytes_to_come(self) -> int:
        """What the first step will allocate for good: the optimiser's two averages."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if not self.optimizer.state]
        return sum(2 * local(p).nbytes for p in parameters)

    def check(self, step: int) -> None:
        """Waits for the device.

        Raises:
            AyfError: some time before the end of optimiser step `step`, too many gradients in a row were not finite.
        """
        if self._guard.broken:
            raise AyfError(
                f"the gradient of '{self.name}' was not finite for {SKIPPED_IN_A_ROW} steps in a row, seen at step "
                f"{step}: lower its learning rate, or look for NaN in the data"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": int(self._guard.in_a_row),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_network_state(self.network, state["network"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self._guard.skipped.fill_(state["skipped"])
        self._guard.in_a_row.fill_(state["skipped_in_a_row"])


class _NonFiniteGuard:
    """Counts steps whose gradient is not finite, on the device that computes it."""

    def __init__(self, device: torch.device) -> None:
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)

    def see(self, norm: Tensor) -> Tensor:
        """1.0 where this step is to be left out, else 0.0."""
        bad = ~torch.isfinite(norm)
        self.skipped += bad
        self.in_a_row = (self.in_a_row + 1) * bad
        self.broken |= self.in_a_row >= SKIPPED_IN_A_ROW
        return bad.float()


def mean_of_metrics(
    noted: Sequence[Mapping[str, Tensor]], parts: Sequence[MicroBatch], context: TrainingContext
) -> dict[str, Tensor]:
    """Of each metric over micro-batches and workers. A bin that is empty in some of them is NaN there."""
    if not noted[0]:
        return {}
    weights = torch.tensor([[part.weight] for part in parts], dtype=torch.float64)
    values = torch.stack([torch.stack([value.double().cpu() for value in each.values()]) for each in noted])
    known = weights * values.isfinite()
    sums = (known * values.nan_to_num(0.0, 0.0, 0.0)).sum(dim=0).to(context.device)
    means = mean_over_workers(sums, known.sum(dim=0).to(context.device), context)
    return dict(zip(noted[0], means, strict=True))
