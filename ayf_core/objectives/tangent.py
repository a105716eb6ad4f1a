"""How a raw tangent becomes a training signal: warm-up, normalisation, and a loss that one bad sample cannot spoil."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.interpolants import expand
from ayf_core.settings import setting


@dataclass(frozen=True, kw_only=True)
class TangentSettings:
    """How the derivative along the trajectory is taken and tamed (AYF section 3.2).

    The derivative term is multiplied by r, which grows linearly from 0 to r_max (AYF: 0.99). Tangent normalisation is
    g / (‖g‖ + c), a sample at a time (AYF: c = 0.1); the paper does not say whether its norm is divided by √D: the two
    differ in the effective c and in the size of the gradient.
    """

    backend: str = setting("how d/dt of the network is taken", room="tangent")
    warmup_max: float = setting("final weight r of the tangent's derivative term", at_least=0.0, at_most=1.0)
    warmup_fraction: float = setting("share of the steps over which r grows", at_least=0.0, at_most=1.0)
    normalise: bool = setting("divide the tangent by its norm + c")
    normalisation_constant: float = setting("that c", above=0.0)
    divide_by_sqrt_dim: bool = setting("take the norm per dimension: |.| / sqrt(D)")
    self_check_tolerance: float = setting("largest error of the derivative before training starts", above=0.0)

    def warmup(self, step: int, steps: int) -> float:
        """r at an optimiser step of a training of so many steps.

        A function of the global step alone, so a resumed run goes on where it was.
        """
        growing = round(self.warmup_fraction * steps)
        return self.warmup_max * min(1.0, step / growing) if growing else self.warmup_max


def normalise_tangent(g: Float[Tensor, "batch *dims"], settings: TangentSettings) -> Float[Tensor, "batch *dims"]:
    """g / (‖g‖ + c), the norm over each sample, optionally divided by √D."""
    if not settings.normalise:
        return g
    norm = g.flatten(1).norm(dim=1)
    if settings.divide_by_sqrt_dim:
        norm = norm / g[0].numel() ** 0.5
    return g / expand(norm + settings.normalisation_constant, g)


def tangent_loss(
    value: Float[Tensor, "batch *dims"],
    tangent: Float[Tensor, "batch *dims"],
    weight: Float[Tensor, " batch"],
    settings: TangentSettings,
) -> tuple[Float[Tensor, ""], Tensor]:
    """½ E w ‖F - stopgrad(F - g)‖², whose gradient is that of E w <F, stopgrad(g)>; g the normalised tangent.

    A sample whose tangent is not finite contributes zero, decided before the norm: it cannot spoil the others.

    Returns:
        The loss, and which samples were kept [B].
    """
    finite = tangent.flatten(1).isfinite().all(dim=1) & value.detach().flatten(1).isfinite().all(dim=1)
    keep = finite.view(-1, *(1,) * (tangent.ndim - 1))
    g = normalise_tangent(torch.where(keep, tangent, 0.0), settings)
    target = torch.where(keep, value.detach(), 0.0) - g
    error = (torch.where(keep, value, 0.0) - target).flatten(1).square().sum(dim=1)
    return 0.5 * (weight.to(error.dtype) * error).mean(), finite
