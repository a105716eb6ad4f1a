"""Points of a 4 x 4 checkerboard in the plane: a law that is known exactly and learnt in a minute."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.data.sets.base import DataSource, Examples
from ayf_core.errors import AyfError
from ayf_core.registry import register
from ayf_core.settings import setting

SCALE = math.sqrt(12) / 8
"""What points in [-4, 4]^2 are multiplied by: each coordinate then has a standard deviation of exactly 1."""

HALF_WIDTH = 4 * SCALE
"""Half the side of the scaled board, sqrt(3)."""


@register("data set", "checkerboard", title="Checkerboard of points", gives=["points", "half_width"])
@dataclass(frozen=True, kw_only=True)
class Checkerboard(DataSource):
    """Points [2] of a single class."""

    size: int = setting("how many points to draw", at_least=16)

    @property
    def half_width(self) -> float:
        return HALF_WIDTH

    def examples(self, generator: torch.Generator) -> Examples:
        if self.size < 2:
            raise AyfError(f"size is {self.size}: say how many points the checkerboard draws, at least 2")
        return Examples(sample_checkerboard(self.size, generator), torch.zeros(self.size, dtype=torch.int64), 1)


def sample_checkerboard(n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 2"]:
    """Draw n points of the 4 x 4 checkerboard, float32.

    The law: cut [-4, 4]^2 into 4 x 4 squares of side 2, numbered (i, j) from the lower left; the density is
    uniform, 1 / 32, on the eight squares where i + j is odd, and 0 elsewhere. The points are then multiplied by
    `SCALE`, so each coordinate is uniform on [-sqrt(3), sqrt(3)]: mean 0, standard deviation 1.
    """
    column = torch.randint(0, 4, (n,), generator=generator)
    half = torch.randint(0, 2, (n,), generator=generator)
    row = 2 * half + (column + 1) % 2  # of the two squares in the column where column + row is odd
    corner = torch.stack([column, row], dim=1).double()
    inside = torch.rand((n, 2), generator=generator, dtype=torch.float64)
    return ((2.0 * (corner + inside) - 4.0) * SCALE).float()
