"""The Eulerian objective with a ceiling on the raw tangent: an outlier pulls no harder than `ceiling`."""

from dataclasses import dataclass

from torch import Tensor

from ayf_core.interpolants import expand
from ayf_core.objectives.base import Loss
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.registry import register
from ayf_core.settings import setting
from ayf_core.tangents.points import Point


@register("objective", "capped", title="Student, capped tangents", colour="#CC79A7", needs_teacher=True)
@dataclass(frozen=True, kw_only=True)
class CappedDistillation(EulerianDistillation):
    """AYF-EMD whose raw tangent is scaled down to a norm of `ceiling` where it is larger."""

    ceiling: float = setting("largest norm of a raw tangent", above=0.0)

    def loss(self, point: Point, value: Tensor, tangent: Tensor) -> Loss:
        norm = tangent.flatten(1).norm(dim=1)
        return super().loss(point, value, tangent * expand((self.ceiling / norm).clamp(max=1.0), tangent))
