"""What the objectives with a teacher share: the teacher's velocity and the law of its guidance scale."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.guidance.scale import GuidanceLaw
from ayf_core.objectives.base import Batch
from ayf_core.objectives.flow_map import FlowMapObjective
from ayf_core.randomness import StepRandom
from ayf_core.tangents.points import Point
from ayf_core.velocity import VelocityField


@dataclass(frozen=True, kw_only=True)
class Distillation(FlowMapObjective):
    """A flow map learnt from a velocity.

    Args:
        teacher: the velocity that is distilled; a guided one is called with λ.
        guidance: law of λ, or None for a student that is not told λ.
    """

    teacher: VelocityField
    guidance: GuidanceLaw | None

    def scale(self, random: StepRandom) -> Float[Tensor, " batch"] | None:
        return None if self.guidance is None else self.guidance.sample(random)

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, point: Point) -> Tensor:
        """The teacher's velocity at (x, t) under the condition and the λ of `point`."""
        return self.teacher(x, t, point.condition, point.guidance_scale).to(x.dtype)

    def self_check(self, network: nn.Module, batch: Batch, random: StepRandom, compiled: bool = False) -> float:
        few = self.draw(batch, random).point.rows(slice(0, 2))
        return self.check_derivative(network, few, self.velocity(few.x, few.t, few), compiled)
