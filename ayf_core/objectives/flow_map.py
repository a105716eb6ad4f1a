"""What the objectives of flow maps share: times, the point on the path, the stabilised loss and what is logged."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ayf_core.interpolants import LinearInterpolant, expand
from ayf_core.objectives.base import Batch, Loss
from ayf_core.objectives.diagnostics import mean_by_bins
from ayf_core.objectives.tangent import TangentSettings, tangent_loss
from ayf_core.randomness import StepRandom
from ayf_core.registry import find
from ayf_core.tangents.check import self_check
from ayf_core.tangents.engines import unwrap, value_and_derivative
from ayf_core.tangents.points import Point, eulerian_direction, lagrangian_direction
from ayf_core.times import PairLaw


class Drawn(NamedTuple):
    """Where F is trained, the velocity x_1 - x_0 of the path that led there, and (on the host) where s = t."""

    point: Point
    conditional_velocity: Float[Tensor, "batch *dims"]
    diagonal: Bool[Tensor, " batch"] | None


@dataclass(frozen=True, kw_only=True)
class FlowMapObjective(ABC):
    """The part of a step before the tangent, and the part after it.

    Args:
        time_law: law of (t, s).
        tangent: stabilisers and back end.
        weighting: name of w(t, s), of the room `weighting`.
        steps: of the training, of which the tangent's warm-up is a share.
    """

    time_law: PairLaw
    tangent: TangentSettings
    weighting: str
    steps: int

    @abstractmethod
    def __call__(
        self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False
    ) -> Loss: ...

    def past_warmup(self) -> Self:
        """The same objective with the derivative term at its full weight from the first step."""
        return replace(self, tangent=replace(self.tangent, warmup_fraction=0.0))

    def scale(self, random: StepRandom) -> Float[Tensor, " batch"] | None:
        """λ [B] that the network is told; None where it takes none."""
        return None

    def draw(self, batch: Batch, random: StepRandom) -> Drawn:
        """Points on the path between the batch and fresh noise."""
        noise = random.normal("noise", batch.x.shape[1:], batch.x.dtype)
        t, s = self.time_law.sample(random)
        x = LinearInterpolant.interpolate(batch.x, noise, t)
        point = Point(x, t, s, batch.condition, self.scale(random))
        return Drawn(point, LinearInterpolant.velocity(batch.x, noise), self.time_law.diagonal(random))

    def loss(self, point: Point, value: Tensor, tangent: Tensor) -> Loss:
        """The loss whose gradient is the weighted, normalised tangent, with what is logged of every step."""
        weight = find("weighting", self.weighting).load()(point.t, point.s)
        loss, finite = tangent_loss(value, tangent, weight, self.tangent)
        kept = torch.where(finite, tangent.flatten(1).norm(dim=1), torch.nan)
        return Loss(loss, {"loss": kept.nanmean(), "masked_samples": (~finite).double().mean()})

    def eulerian_loss(self, network: nn.Module, drawn: Drawn, velocity: Tensor, step: int, monitor: bool) -> Loss:
        """The end of a jump must not move when its start moves along `velocity` [B, *D].

        d f / dt = (v - F) + (s - t) dF/dt = 0, with dF/dt along (v, 1, 0). In F form, for s < t, F moves towards
        v - r (t - s) dF/dt: the raw tangent is g = (F - v) + r (t - s) dF/dt.
        """
        point, direction = drawn.point, eulerian_direction(drawn.point, velocity)
        value, derivative = value_and_derivative(network, point, direction, self.tangent.backend, drawn.diagonal)
        interval = expand(point.t - point.s, velocity)
        tangent = (value.detach() - velocity) + self.tangent.warmup(step, self.steps) * interval * derivative
        loss = self.loss(point, value, tangent)
        if monitor:
            loss.metrics |= self.diagnostics(point, tangent, derivative, step)
        return loss

    def diagnostics(self, point: Point, tangent: Tensor, derivative: Tensor, step: int) -> dict[str, Tensor]:
        """What tells whether training goes well: raw norms by bins of t and of t - s."""
        raw, slope = tangent.flatten(1).norm(dim=1), derivative.flatten(1).norm(dim=1)
        interval = point.t - point.s
        slope = torch.where(interval > 0, slope, torch.nan)  # on the diagonal none is computed
        return {
            **mean_by_bins("tangent_norm", "t", raw, point.t),
            **mean_by_bins("tangent_norm", "interval", raw, interval),
            **mean_by_bins("derivative_norm", "t", slope, point.t),
            **mean_by_bins("derivative_norm", "interval", slope, interval),
            "tangent_warmup": torch.tensor(self.tangent.warmup(step, self.steps)),
        }

    @torch.no_grad()
    def on_the_diagonal(self, quantity: str, network: nn.Module, point: Point, velocity: Tensor) -> dict[str, Tensor]:
        """How far F(x, t, t) is from a velocity at the same points, squared, by bins of t."""
        residual = unwrap(network)(point.x, point.t, point.t, point.condition, point.guidance_scale) - velocity
        return mean_by_bins(quantity, "t", residual.flatten(1).square().mean(dim=1), point.t)

    def check_derivative(self, network: nn.Module, few: Point, velocity: Tensor, compiled: bool) -> float:
        """The derivative engine's self-check at a few points, along the trajectory and along s; its largest error.

        Raises:
            AyfError: if the back end is off by more than the tolerance.
        """
        directions = eulerian_direction(few, velocity), lagrangian_direction(few)
        how = self.tangent.backend, self.tangent.self_check_tolerance, compiled
        return max(self_check(network, few, direction, *how) for direction in directions)

    @abstractmethod
    def self_check(self, network: nn.Module, batch: Batch, random: StepRandom, compiled: bool = False) -> float:
        """The derivative engine's largest error on two samples of this batch.

        Args:
            compiled: the network will be trained so.

        Raises:
            AyfError: if the back end is off by more than the tolerance.
        """
