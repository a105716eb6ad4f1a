"""Velocity fields v(x, t): a trained network, and guidance as a combination of two networks."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.conditions import Condition, ConditionSpec
from ayf_core.interpolants import expand


@runtime_checkable
class VelocityField(Protocol):
    """Anything that gives a velocity: networks, guided pairs of networks, exact fields."""

    evaluations_per_call: int
    """Network evaluations that one call costs: what an honest NFE counts."""

    def __call__(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
        condition: Condition | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *dims"]: ...


class NetworkVelocity:
    """The velocity v(x, t | c) of one network. It has no guidance: λ is ignored."""

    evaluations_per_call = 1

    def __init__(self, network: nn.Module):
        self.network = network

    def __call__(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        # Two tensors, not one twice: of the forms that a compiler makes, the student's is then told apart from this one
        # by what it computes. By which arguments are one it is told apart too, but torch 2.13 fails to say so.
        return self.network(x, t, t.clone(), condition)


class Autoguidance:
    """λ v_teacher + (1 - λ) v_weak (Karras et al., arXiv 2406.02507; AYF section 3.4).

    λ = 1 is the teacher, λ > 1 moves away from what the weak teacher would do. Two evaluations a call.
    """

    def __init__(self, teacher: VelocityField, weak_teacher: VelocityField):
        self.teacher = teacher
        self.weak_teacher = weak_teacher
        self.evaluations_per_call = teacher.evaluations_per_call + weak_teacher.evaluations_per_call

    def __call__(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        strong = self.teacher(x, t, condition)
        if guidance_scale is None:
            return strong
        scale = expand(guidance_scale, x)
        return scale * strong + (1 - scale) * self.weak_teacher(x, t, condition)


class ClassifierFreeGuidance:
    """λ v(x, t | c) + (1 - λ) v(x, t | nothing) (Ho & Salimans, arXiv 2207.12598). Two evaluations a call.

    Args:
        conditions: what is dropped: the conditions of the teacher.
    """

    def __init__(self, teacher: VelocityField, conditions: ConditionSpec):
        self.teacher = teacher
        self.conditions = conditions
        self.evaluations_per_call = 2 * teacher.evaluations_per_call

    def __call__(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        conditional = self.teacher(x, t, condition)
        if guidance_scale is None or not condition:
            return conditional
        scale = expand(guidance_scale, x)
        unconditional = self.teacher(x, t, condition.null(self.conditions))
        return scale * conditional + (1 - scale) * unconditional
