"""Drawing samples: chains of flow-map jumps (with γ-sampling), ODE solvers for teachers, time grids.

Every sampler reports honest costs: `Samples.nfe` counts network evaluations per sample, so that a guided
velocity (two networks a call) costs two where a flow map costs one.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ayf_core.errors import AyfError, require

Grid = Float[Tensor, " points"]


@dataclass(frozen=True)
class Samples:
    """Finished samples x [B, *D] and nfe, the network evaluations spent on each of them."""

    x: Tensor
    nfe: int


def uniform_grid(steps: int) -> Grid:
    """Equal steps from t = 1 to t = 0: float64 [steps + 1].

    AYF does not publish its time grids; the three grids of this file are this project's own.
    """
    return _fractions(steps)


def shifted_grid(steps: int, shift: float) -> Grid:
    """Uniform grid pushed towards noise: t -> shift t / (1 + (shift - 1) t), float64 [steps + 1].

    shift > 1 spends more steps near t = 1, shift = 1 is uniform, shift < 1 spends more near t = 0.
    The map used by resolution-shifted flow models (SD3, arXiv 2403.03206, eq. 23).
    """
    if not shift > 0:
        raise AyfError(f"shift must be above 0, got {shift}; 1 is the uniform grid, above 1 leans to noise")
    t = _fractions(steps)
    return shift * t / (shift * t + (1 - t))  # so written, it is exactly 1 at t = 1


def polynomial_grid(steps: int, rho: float) -> Grid:
    """t_i = (1 - i / steps)^rho, float64 [steps + 1]: rho > 1 crowds the steps near data, rho < 1 near
    noise."""
    if not rho > 0:
        raise AyfError(f"rho must be above 0, got {rho}; 1 is the uniform grid, above 1 leans to data")
    return _fractions(steps) ** rho


GRIDS: Mapping[str, Callable[[int, float], Grid]] = {
    "uniform": lambda steps, _: uniform_grid(steps),
    "shifted": shifted_grid,
    "polynomial": polynomial_grid,
}
"""The time grids by name, called with the number of steps and the grid's parameter."""


@dataclass(frozen=True)
class SamplingSettings:
    """How a flow map is sampled, apart from the number of steps; as it stands, the uniform deterministic chain.

    Attributes:
        grid: where the steps lie: `uniform`, `shifted` or `polynomial`.
        grid_parameter: the shift or rho of that grid, above 0; 1 is uniform in either.
        gamma: of γ-sampling, in [0, 1]; 0 is deterministic.
        guidance_scale: λ; None where the model takes none, or for the least it learnt.

    Raises:
        AyfError: an unknown grid or a value out of range.
    """

    grid: str = "uniform"
    grid_parameter: float = 1.0
    gamma: float = 0.0
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise AyfError(f"unknown time grid {self.grid!r}: choose {', '.join(GRIDS)}")
        if not (_is_number(self.grid_parameter) and self.grid_parameter > 0):
            raise AyfError(f"the {self.grid} grid's parameter must be above 0, got {self.grid_parameter}")
        if self.grid == "uniform" and self.grid_parameter != 1:
            raise AyfError(f"the uniform grid takes no parameter, got {self.grid_parameter}: choose another grid")
        if not (_is_number(self.gamma) and 0 <= self.gamma <= 1):
            raise AyfError(f"gamma must lie in [0, 1], got {self.gamma}; 0 is the deterministic chain")
        if self.guidance_scale is not None and not (_is_number(self.guidance_scale) and self.guidance_scale >= 0):
            raise AyfError(f"the guidance scale must be 0 or more, got {self.guidance_scale}")

    def times(self, steps: int) -> Grid:
        """The falling times of so many steps, from 1 to 0: float64 [steps + 1]."""
        return GRIDS[self.grid](steps, self.grid_parameter)

    def arguments(self, steps: int) -> dict[str, Any]:
        """What `Generator.sample` is to be called with, besides noise, steps and labels."""
        return {"times": self.times(steps), "gamma": self.gamma, "guidance_scale": self.guidance_scale}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SamplingSettings":
        """Settings from their names and values; other names are passed over.

        Raises:
            AyfError: a name is missing, or a value is not allowed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise AyfError(f"sampling settings lack {', '.join(missing)}")
        return cls(**{name: values[name] for name in names})

    def __str__(self) -> str:
        grid = self.grid if self.grid == "uniform" else f"{self.grid}:{self.grid_parameter:.3g}"
        scale = "" if self.guidance_scale is None else f", λ {self.guidance_scale:.4g}"
        return f"{grid} grid, γ {self.gamma:.3g}{scale}"


def read_grid(text: str) -> tuple[str, float]:
    """Name and parameter of a grid written as `uniform`, `shifted:2.0` or `polynomial:0.7`.

    Raises:
        AyfError: it is none of these.
    """
    name, colon, parameter = text.partition(":")
    try:
        number = float(parameter) if colon else 1.0
    except ValueError:
        number = math.nan
    if name not in GRIDS or math.isnan(number) or bool(colon) == (name == "uniform"):
        raise AyfError(f"{text!r} is no time grid: write uniform, shifted:2.0 or polynomial:0.7")
    return name, SamplingSettings(name, number).grid_parameter


@torch.no_grad()
def sample_flow_map(
    flow_map: Callable[..., Tensor],
    noise: Float[Tensor, "batch *dims"],
    grid: Grid,
    labels: Int[Tensor, " batch"] | None = None,
    guidance_scale: Float[Tensor, " batch"] | None = None,
    gamma: float = 0.0,
    generator: torch.Generator | None = None,
) -> Samples:
    """Chain x <- f(x, t_i, t_{i+1}) over a falling grid, with γ-sampling between jumps.

    γ-sampling is CTM's (arXiv 2310.02279, algorithm 3) carried to the linear path. With σ(t) = t / (1 - t)
    each jump goes past its target u to s̃, where σ(s̃) = √(1 - γ²) σ(u), and fresh noise brings the point back
    up to u. For an exact flow map the marginals are kept for every γ. With κ = √(1 - γ²), and never dividing
    by 1 - u,

        s̃ = κ u / (1 - u + κ u),    x_u = (1 - u + κ u) x_s̃ + γ u z,   z ~ N(0, I).

    Args:
        flow_map: called as flow_map(x, t, s, labels=..., guidance_scale=...) with t, s float64 [B].
        noise: the starting points at time grid[0] (noise when that is 1), [B, *D]; its dtype is kept
            throughout.
        grid: strictly falling times in [0, 1].
        gamma: in [0, 1]; 0 is the deterministic chain, 1 is consistency sampling (jump to data, renoise).
        generator: source of the fresh noise; unused when gamma is 0.

    Raises:
        AyfError: gamma out of range or a malformed grid.
    """
    if not 0 <= gamma <= 1:
        raise AyfError(f"gamma must lie in [0, 1], got {gamma}; 0 is the deterministic chain")
    times = _checked_times(grid)
    kappa = (1 - gamma**2) ** 0.5
    x = noise
    for t, u in pairwise(times):
        rescale = 1 - u + kappa * u
        target = kappa * u / rescale
        here, there = _batch_time(t, x), _batch_time(target, x)
        x = flow_map(x, here, there, labels=labels, guidance_scale=guidance_scale).to(noise.dtype)
        if gamma > 0 and u > 0:
            x = rescale * x + gamma * u * _normal_like(x, generator)
    jumps = len(times) - 1
    return Samples(x, jumps * getattr(flow_map, "evaluations_per_call", 1))


@torch.no_grad()
def solve_ode(
    velocity: Any,
    noise: Float[Tensor, "batch *dims"],
    grid: Grid,
    method: Literal["euler", "heun", "dopri5"] = "heun",
    labels: Int[Tensor, " batch"] | None = None,
    guidance_scale: Float[Tensor, " batch"] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Samples:
    """Follow the probability-flow ODE dx/dt = v(x, t) from grid[0] down to grid[-1].

    Not the way to sample a distilled student: that is `sample_flow_map`.

    Args:
        velocity: a VelocityField, called as velocity(x, t, labels=..., guidance_scale=...) with t float64
            [B]; its `evaluations_per_call` says how many network evaluations one call costs.
        noise: the starting points at time grid[0], [B, *D]; its dtype is kept throughout.
        grid: strictly falling times in [0, 1]. dopri5 uses only its two ends.
        method: "euler" (n calls for n steps), "heun" (EDM, arXiv 2206.00364, algorithm 1: the step that
            ends at t = 0 is an Euler step, so 2n - 1 calls) or "dopri5" (adaptive, through torchdiffeq).
        rtol, atol: tolerances of dopri5, in the root mean square over the whole batch; unused by the others.

    Raises:
        AyfError: unknown method, malformed grid, or dopri5 without torchdiffeq.
    """
    times = _checked_times(grid)
    calls = 0

    def evaluate(x: Tensor, t: float | Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        v = velocity(x, _batch_time(t, x), labels=labels, guidance_scale=guidance_scale)
        return v.to(noise.dtype)

    if method == "dopri5":
        x = _dopri5(evaluate, noise, times[0], times[-1], rtol, atol)
    elif method in ("euler", "heun"):
        x = noise
        for t, u in pairwise(times):
            v = evaluate(x, t)
            ahead = x + (u - t) * v
            if method == "heun" and u > 0:
                ahead = x + (u - t) * (v + evaluate(ahead, u)) / 2
            x = ahead
    else:
        raise AyfError(f"unknown ODE method {method!r}; choose euler, heun or dopri5")
    return Samples(x, calls * velocity.evaluations_per_call)


def _dopri5(
    evaluate: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    start: float,
    end: float,
    rtol: float,
    atol: float,
) -> Tensor:
    torchdiffeq = require("torchdiffeq", extra="platform", needed_for="the ODE method dopri5")
    ends = torch.tensor([start, end], dtype=torch.float64, device=x.device)
    return torchdiffeq.odeint(lambda t, y: evaluate(y, t), x, ends, rtol=rtol, atol=atol, method="dopri5")[-1]


def _fractions(steps: int) -> Grid:
    if steps < 1:
        raise AyfError(f"a time grid needs at least 1 step, got {steps}")
    return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)


def _checked_times(grid: Grid) -> list[float]:
    if grid.ndim != 1 or len(grid) < 2:
        raise AyfError(f"a time grid is a 1-D tensor of two or more times, got shape {tuple(grid.shape)}")
    times = grid.double().tolist()
    if not (times[0] <= 1 and times[-1] >= 0 and all(t > u for t, u in pairwise(times))):
        raise AyfError(f"a time grid falls strictly within [0, 1], from noise (1) to data (0); got {times}")
    return times


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _batch_time(t: float | Tensor, x: Tensor) -> Float[Tensor, " batch"]:
    return torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    # Drawn where the generator lives, so that a CPU generator gives the same noise on every device.
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
