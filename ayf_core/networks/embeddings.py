"""Embeddings of scalars (time, interval length, guidance scale) and of class labels."""

import math
from collections.abc import Callable
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ScalarEmbedding(nn.Module):
    """Sinusoidal features of a scalar, then a two-layer perceptron.

    The phase is computed in float64 and only its sine and cosine are cast to the network's dtype: a
    low-precision phase is a known cause of spikes in d/dt. Frequencies stay small (period 4 to 1/4 over
    [0, 1] by default) because d(embedding)/dt multiplies the tangent.

    Args:
        width: number of output channels.
        frequencies: number of sine/cosine pairs.
        maximum_frequency: largest angular frequency, in radians per unit of the scalar.
        zero_init: start with a zero output, so that a network given this condition starts as if it had none.
    """

    phases: Tensor

    def __init__(
        self,
        width: int,
        frequencies: int = 16,
        maximum_frequency: float = 8 * math.pi,
        zero_init: bool = False,
    ):
        super().__init__()
        spread = torch.linspace(0, 1, frequencies, dtype=torch.float64)
        lowest = math.pi / 2
        self.register_buffer("phases", lowest * (maximum_frequency / lowest) ** spread, persistent=False)
        self.expand = nn.Linear(2 * frequencies, width)
        self.project = nn.Linear(width, width)
        if zero_init:
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(dtype)` and `.half()` must not lower the precision of the phases; devices still follow.
        phases = self.phases
        super()._apply(fn, recurse)
        self.phases = phases.to(self.phases.device)
        return self

    def forward(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        phase = value.double()[:, None] * self.phases
        features = torch.cat([phase.cos(), phase.sin()], dim=1).to(self.expand.weight.dtype)
        return self.project(nn.functional.silu(self.expand(features)))


class LabelEmbedding(nn.Module):
    """One learned vector a class, and one more for 'no label' (index `num_classes`)."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.5)

    def forward(self, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        return self.table(labels)
