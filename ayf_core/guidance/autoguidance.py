"""Autoguidance: away from what a worse model of the same data would do."""

from dataclasses import dataclass

from torch import nn

from ayf_core.conditions import ConditionSpec
from ayf_core.guidance.scale import GuidanceLaw
from ayf_core.registry import register
from ayf_core.velocity import Autoguidance, NetworkVelocity, VelocityField


@register("guidance", "autoguidance", title="Autoguidance", needs_weak_teacher=True, needs_scale=True)
@dataclass(frozen=True, kw_only=True)
class Autoguided(GuidanceLaw):
    """The teacher guided by a weak teacher (Karras et al., arXiv 2406.02507; AYF section 3.4)."""

    @staticmethod
    def build(teacher: nn.Module, weak_teacher: nn.Module, conditions: ConditionSpec) -> VelocityField:
        """The guided velocity of two networks."""
        return Autoguidance(NetworkVelocity(teacher), NetworkVelocity(weak_teacher))
