"""No guidance: the teacher as it is, and a student that is told no λ."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.conditions import ConditionSpec
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.randomness import StepRandom
from ayf_core.registry import register
from ayf_core.velocity import NetworkVelocity, VelocityField


@register("guidance", "none", title="None", needs_weak_teacher=False, needs_scale=False)
@dataclass(frozen=True)
class Unguided:
    """The teacher's own velocity."""

    range: ClassVar[GuidanceRange | None] = None

    def sample(self, random: StepRandom) -> Float[Tensor, " batch"] | None:
        """None: there is no λ to tell."""
        return None

    @staticmethod
    def build(teacher: nn.Module, weak_teacher: nn.Module, conditions: ConditionSpec) -> VelocityField:
        """The velocity of the teacher's network."""
        return NetworkVelocity(teacher)
