"""Weights w(t, s) in front of the F-form gradient; the paper leaves them open."""

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.registry import register


@register("weighting", "uniform", title="Uniform")
def uniform(t: Float[Tensor, " batch"], s: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """1 for every sample."""
    return torch.ones_like(t)


@register("weighting", "interval", title="By the interval")
def interval(t: Float[Tensor, " batch"], s: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The factor |t - s| that the f-form carries when its own weight is one."""
    return t - s
