"""Where a mean velocity F(x, t, s) is evaluated, and the directions in which it is differentiated there."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.conditions import Condition


class Point(NamedTuple):
    """Where F is evaluated."""

    x: Float[Tensor, "batch *dims"]
    t: Float[Tensor, " batch"]
    s: Float[Tensor, " batch"]
    condition: Condition | None = None
    guidance_scale: Float[Tensor, " batch"] | None = None

    def rows(self, rows: slice | Tensor) -> "Point":
        """Some of the samples, each with its condition and λ."""
        condition = None if self.condition is None else self.condition.rows(rows)
        scale = None if self.guidance_scale is None else self.guidance_scale[rows]
        return Point(self.x[rows], self.t[rows], self.s[rows], condition, scale)

    def double(self) -> "Point":
        """The same point in float64."""
        scale = None if self.guidance_scale is None else self.guidance_scale.double()
        return Point(self.x.double(), self.t.double(), self.s.double(), self.condition, scale)


class Direction(NamedTuple):
    """The direction (dx, dt, ds) in which F is differentiated; None is what stays. The condition and λ stay too."""

    x: Float[Tensor, "batch *dims"] | None = None
    t: Float[Tensor, " batch"] | None = None
    s: Float[Tensor, " batch"] | None = None

    def rows(self, rows: slice | Tensor) -> "Direction":
        """That of some of the samples."""
        return Direction(*(None if part is None else part[rows] for part in self))

    def double(self) -> "Direction":
        """The same direction in float64."""
        return Direction(*(None if part is None else part.double() for part in self))


def eulerian_direction(point: Point, velocity: Tensor) -> Direction:
    """(v, 1, 0): the starting point moves along the trajectory, the target time s stays."""
    return Direction(x=velocity.to(point.x.dtype), t=torch.ones_like(point.t))


def lagrangian_direction(point: Point) -> Direction:
    """(0, 0, 1): the starting point stays, the target time s moves."""
    return Direction(s=torch.ones_like(point.s))
