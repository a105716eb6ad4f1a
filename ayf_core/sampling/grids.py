"""Time grids: where the steps from noise (t = 1) to data (t = 0) lie.

AYF does not publish its time grids; these are this project's own.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.errors import AyfError
from ayf_core.registry import register

Grid = Float[Tensor, " points"]


@register("grid", "uniform", title="Uniform", example=None)
def uniform_grid(steps: int) -> Grid:
    """Equal steps from t = 1 to t = 0: float64 [steps + 1]."""
    return _fractions(steps)


@register("grid", "shifted", title="Shifted", example=2.0)
def shifted_grid(steps: int, shift: float) -> Grid:
    """Uniform grid pushed towards noise: t -> shift t / (1 + (shift - 1) t), float64 [steps + 1].

    shift > 1 spends more steps near t = 1, shift = 1 is uniform, shift < 1 spends more near t = 0.
    The map used by resolution-shifted flow models (SD3, arXiv 2403.03206, eq. 23).
    """
    if not shift > 0:
        raise AyfError(f"shift must be above 0, got {shift}; 1 is the uniform grid, above 1 leans to noise")
    t = _fractions(steps)
    return shift * t / (shift * t + (1 - t))  # so written, it is exactly 1 at t = 1


@register("grid", "polynomial", title="Polynomial", example=0.7)
def polynomial_grid(steps: int, rho: float) -> Grid:
    """t_i = (1 - i / steps)^rho, float64 [steps + 1]: rho > 1 crowds the steps near data, rho < 1 near noise."""
    if not rho > 0:
        raise AyfError(f"rho must be above 0, got {rho}; 1 is the uniform grid, above 1 leans to data")
    return _fractions(steps) ** rho


def checked_times(grid: Grid) -> list[float]:
    """The times of a grid as numbers.

    Raises:
        AyfError: they do not fall strictly within [0, 1], or are fewer than two.
    """
    if grid.ndim != 1 or len(grid) < 2:
        raise AyfError(f"a time grid is a 1-D tensor of two or more times, got shape {tuple(grid.shape)}")
    times = grid.double().tolist()
    if not (times[0] <= 1 and times[-1] >= 0 and all(t > u for t, u in pairwise(times))):
        raise AyfError(f"a time grid falls strictly within [0, 1], from noise (1) to data (0); got {times}")
    return times


def _fractions(steps: int) -> Grid:
    if steps < 1:
        raise AyfError(f"a time grid needs at least 1 step, got {steps}")
    return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
