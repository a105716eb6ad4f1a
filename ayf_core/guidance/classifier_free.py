"""Classifier-free guidance: away from what the teacher itself would do without the condition."""

from dataclasses import dataclass

from torch import nn

from ayf_core.conditions import ConditionSpec
from ayf_core.guidance.scale import GuidanceLaw
from ayf_core.registry import register
from ayf_core.velocity import ClassifierFreeGuidance, NetworkVelocity, VelocityField


@register(
    "guidance",
    "classifier_free",
    title="Classifier-free guidance",
    needs_weak_teacher=False,
    needs_scale=True,
    needs_dropped_conditions=True,
)
@dataclass(frozen=True, kw_only=True)
class ClassifierFree(GuidanceLaw):
    """The teacher guided by itself without a condition (Ho & Salimans, arXiv 2207.12598).

    The teacher must have been trained with a share of conditions dropped.
    """

    @staticmethod
    def build(teacher: nn.Module, weak_teacher: nn.Module, conditions: ConditionSpec) -> VelocityField:
        """The guided velocity of the teacher; the weak one is not used."""
        return ClassifierFreeGuidance(NetworkVelocity(teacher), conditions)
