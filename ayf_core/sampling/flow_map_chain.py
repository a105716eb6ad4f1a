"""Chains of flow-map jumps, with γ-sampling between them.

Every sampler reports honest costs: `Samples.nfe` counts network evaluations per sample.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.sampling.grids import Grid, checked_times
from ayf_core.sampling.points import NoiseSource, Samples, batch_time, normal_like


@torch.no_grad()
def sample_flow_map(
    flow_map: Callable[..., Tensor],
    noise: Float[Tensor, "batch *dims"],
    grid: Grid,
    condition: Condition | None = None,
    guidance_scale: Float[Tensor, " batch"] | None = None,
    gamma: float = 0.0,
    generator: NoiseSource | None = None,
) -> Samples:
    """Chain x <- f(x, t_i, t_{i+1}) over a falling grid, with γ-sampling between jumps.

    γ-sampling is CTM's (arXiv 2310.02279, algorithm 3) carried to the linear path. With σ(t) = t / (1 - t)
    each jump goes past its target u to s̃, where σ(s̃) = √(1 - γ²) σ(u), and fresh noise brings the point back
    up to u. For an exact flow map the marginals are kept for every γ. With κ = √(1 - γ²), and never dividing
    by 1 - u,

        s̃ = κ u / (1 - u + κ u),    x_u = (1 - u + κ u) x_s̃ + γ u z,   z ~ N(0, I).

    Args:
        flow_map: called as flow_map(x, t, s, condition=..., guidance_scale=...) with t, s float64 [B].
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
    times = checked_times(grid)
    kappa = (1 - gamma**2) ** 0.5
    x = noise
    for t, u in pairwise(times):
        rescale = 1 - u + kappa * u
        target = kappa * u / rescale
        here, there = batch_time(t, x), batch_time(target, x)
        x = flow_map(x, here, there, condition=condition, guidance_scale=guidance_scale).to(noise.dtype)
        if gamma > 0 and u > 0:
            x = rescale * x + gamma * u * normal_like(x, generator)
    jumps = len(times) - 1
    return Samples(x, jumps * getattr(flow_map, "evaluations_per_call", 1))
