"""Solving the probability-flow ODE of a velocity, a teacher's way of sampling.

Every sampler reports honest costs: `Samples.nfe` counts network evaluations per sample, so that a guided velocity (two
networks a call) costs two where a flow map costs one.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError, require
from ayf_core.sampling.grids import Grid, checked_times
from ayf_core.sampling.points import Samples, batch_time


@torch.no_grad()
def solve_ode(
    velocity: Any,
    noise: Float[Tensor, "batch *dims"],
    grid: Grid,
    method: Literal["euler", "heun", "dopri5"] = "heun",
    condition: Condition | None = None,
    guidance_scale: Float[Tensor, " batch"] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Samples:
    """Follow the probability-flow ODE dx/dt = v(x, t) from grid[0] down to grid[-1].

    Not the way to sample a distilled student: that is `sample_flow_map`.

    Args:
        velocity: a VelocityField, called as velocity(x, t, condition=..., guidance_scale=...) with t float64
            [B]; its `evaluations_per_call` says how many network evaluations one call costs.
        noise: the starting points at time grid[0], [B, *D]; its dtype is kept throughout.
        grid: strictly falling times in [0, 1]. dopri5 uses only its two ends.
        method: "euler" (n calls for n steps), "heun" (EDM, arXiv 2206.00364, algorithm 1: the step that
            ends at t = 0 is an Euler step, so 2n - 1 calls) or "dopri5" (adaptive, through torchdiffeq).
        rtol, atol: tolerances of dopri5, in the root mean square over the whole batch; unused by the others.

    Raises:
        AyfError: unknown method, malformed grid, or dopri5 without torchdiffeq.
    """
    times = checked_times(grid)
    calls = 0

    def evaluate(x: Tensor, t: float | Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        v = velocity(x, batch_time(t, x), condition=condition, guidance_scale=guidance_scale)
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
