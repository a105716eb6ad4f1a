"""What a training loop needs of an objective."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.conditions import Condition
from ayf_core.randomness import StepRandom


class Batch(NamedTuple):
    """Training samples x [B, *D] and what they are conditioned on."""

    x: Float[Tensor, "batch *dims"]
    condition: Condition

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same on another device."""
        return Batch(self.x.to(device, non_blocking=non_blocking), self.condition.to(device, non_blocking))


@dataclass
class Loss:
    """A scalar to descend, and what is worth logging (tensors, so that a step need not wait for the device)."""

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss for one batch.

    `network` may be wrapped for data-parallel training. With `monitor` the objective adds its diagnostics to the
    metrics, which may cost extra evaluations: the loop asks for them only on steps that are logged. Their names are the
    same on every worker: the loop logs their means.
    """

    def __call__(
        self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False
    ) -> Loss: ...
