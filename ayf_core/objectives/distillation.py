"""What the Eulerian and the Lagrangian objective share: settings, the guidance law, and the stabilised loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.interpolants import LinearInterpolant, expand
from ayf_core.objectives.base import Batch, Loss
from ayf_core.objectives.diagnostics import mean_by_bins
from ayf_core.randomness import StepRandom
from ayf_core.tangents import Direction, Point, eulerian_direction, lagrangian_direction, self_check, unwrap
from ayf_core.times import IntervalLaw
from ayf_core.velocity import VelocityField


@dataclass(frozen=True, kw_only=True)
class GuidanceLaw:
    """λ ~ U[minimum, maximum] a sample (AYF section 3.4: U[1, 3]); the student is told λ."""

    minimum: float = 1.0
    maximum: float = 1.0

    def sample(self, random: StepRandom) -> Float[Tensor, " batch"]:
        return self.minimum + (self.maximum - self.minimum) * random.uniform("guidance scale")


@dataclass(frozen=True, kw_only=True)
class TangentSettings:
    """How a raw tangent becomes a training signal.

    Args:
        backend: of the derivative engine.
        warmup_max: r_max; the derivative term is multiplied by r, growing linearly from 0 to r_max (AYF: 0.99).
        warmup_steps: length of that growth, in optimiser steps.
        normalise: tangent normalisation g / (‖g‖ + c), a sample at a time (AYF section 3.2).
        normalisation_constant: c (AYF: 0.1).
        divide_by_sqrt_dim: use ‖g‖ / √D in its place; the paper does not say which, they differ in the
            effective c and in the size of the gradient.
    """

    backend: str = "split"
    warmup_max: float = 0.99
    warmup_steps: int = 1000
    normalise: bool = True
    normalisation_constant: float = 0.1
    divide_by_sqrt_dim: bool = False

    def warmup(self, step: int) -> float:
        """r at an optimiser step; a function of the global step, so a resumed run goes on where it was."""
        return self.warmup_max * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.warmup_max


WEIGHTINGS = {
    "uniform": lambda t, s: torch.ones_like(t),
    "interval": lambda t, s: t - s,
}
"""w(t, s) in front of the F-form gradient; the paper leaves it open. `interval` is the factor |t - s| that the
f-form carries when its own weight is one."""


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


@dataclass(frozen=True, kw_only=True)
class Distillation(ABC):
    """The part of a distillation step before the tangent: times, guidance scale, point on the path.

    Args:
        teacher: the velocity that is distilled; a guided one is called with λ.
        time_law: law of (t, s).
        guidance: law of λ, or None for a student without a guidance scale.
        tangent: stabilisers and back end.
        weighting: name of w(t, s): uniform or interval.
    """

    teacher: VelocityField
    time_law: IntervalLaw
    tangent: TangentSettings
    guidance: GuidanceLaw | None = None
    weighting: str = "uniform"

    @abstractmethod
    def __call__(
        self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False
    ) -> Loss: ...

    def past_warmup(self) -> Self:
        """The same objective with the derivative term at its full weight from the first step."""
        return replace(self, tangent=replace(self.tangent, warmup_steps=0))

    def draw(self, batch: Batch, random: StepRandom) -> Point:
        noise = random.normal("noise", batch.x.shape[1:], batch.x.dtype)
        t, s = self.time_law.sample(random)
        scale = self.guidance.sample(random) if self.guidance is not None else None
        return Point(LinearInterpolant.interpolate(batch.x, noise, t), t, s, batch.labels, scale)

    def weight(self, point: Point) -> Float[Tensor, " batch"]:
        return WEIGHTINGS[self.weighting](point.t, point.s)

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, point: Point) -> Tensor:
        return self.teacher(x, t, point.labels, point.guidance_scale).to(x.dtype)

    def self_check(self, network: nn.Module, batch: Batch, random: StepRandom, tolerance: float) -> float:
        """The derivative engine's self-check in the directions of both objectives, on two samples.

        Raises:
            AyfError: if the back end is off by more than the tolerance.
        """
        whole = self.draw(batch, random)
        scale = None if whole.guidance_scale is None else whole.guidance_scale[:2]
        few = Point(whole.x[:2], whole.t[:2], whole.s[:2], batch.labels[:2], scale)
        directions = eulerian_direction(few, self.velocity(few.x, few.t, few)), lagrangian_direction(few)
        return max(self_check(network, few, direction, self.tangent.backend, tolerance) for direction in directions)

    def report(
        self,
        network: nn.Module,
        point: Point,
        tangent: Tensor,
        derivative: Tensor,
        finite: Tensor,
        monitor: bool,
        step: int,
    ) -> dict[str, Tensor]:
        """What tells whether training goes well: raw norms by bins of t and of t - s, the residual on the diagonal."""
        raw = tangent.flatten(1).norm(dim=1)
        kept = torch.where(finite, raw, torch.nan)
        metrics = {"loss": kept.nanmean(), "masked_samples": (~finite).double().mean()}
        if monitor:
            slope = derivative.flatten(1).norm(dim=1)
            interval = point.t - point.s
            metrics |= mean_by_bins("tangent_norm", "t", raw, point.t)
            metrics |= mean_by_bins("tangent_norm", "interval", raw, interval)
            metrics |= mean_by_bins("derivative_norm", "t", slope, point.t)
            metrics |= mean_by_bins("derivative_norm", "interval", slope, interval)
            with torch.no_grad():
                diagonal = unwrap(network)(point.x, point.t, point.t, point.labels, point.guidance_scale)
                residual = diagonal - self.velocity(point.x, point.t, point)
            metrics |= mean_by_bins("velocity_residual", "t", residual.flatten(1).square().mean(dim=1), point.t)
            metrics["tangent_warmup"] = torch.tensor(self.tangent.warmup(step))
        return metrics


__all__ = ["Direction", "Distillation", "GuidanceLaw", "TangentSettings", "normalise_tangent", "tangent_loss"]
