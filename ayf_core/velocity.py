"""Velocity fields v(x, t): a trained network, and guidance as a combination of two networks."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ayf_core.errors import AyfError
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
        labels: Int[Tensor, " batch"] | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *dims"]: ...


class NetworkVelocity:
    """The velocity v(x, t | label) of one network. It has no guidance: λ is ignored."""

    evaluations_per_call = 1

    def __init__(self, network: nn.Module):
        self.network = network

    def __call__(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        return self.network(x, t, t, labels)


class Autoguidance:
    """λ v_teacher + (1 - λ) v_weak (Karras et al., arXiv 2406.02507; AYF section 3.4).

    λ = 1 is the teacher, λ > 1 moves away from what the weak teacher would do. Two evaluations a call.
    """

    def __init__(self, teacher: VelocityField, weak_teacher: VelocityField):
        self.teacher = teacher
        self.weak_teacher = weak_teacher
        self.evaluations_per_call = teacher.evaluations_per_call + weak_teacher.evaluations_per_call

    def __call__(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        strong = self.teacher(x, t, labels)
        if guidance_scale is None:
            return strong
        scale = expand(guidance_scale, x)
        return scale * strong + (1 - scale) * self.weak_teacher(x, t, labels)


class ClassifierFreeGuidance:
    """λ v(x, t | label) + (1 - λ) v(x, t | no label) (Ho & Salimans, arXiv 2207.12598). Two evaluations a call."""

    def __init__(self, teacher: VelocityField, null_label: int):
        self.teacher = teacher
        self.null_label = null_label
        self.evaluations_per_call = 2 * teacher.evaluations_per_call

    def __call__(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        conditional = self.teacher(x, t, labels)
        if guidance_scale is None or labels is None:
            return conditional
        scale = expand(guidance_scale, x)
        unconditional = self.teacher(x, t, torch.full_like(labels, self.null_label))
        return scale * conditional + (1 - scale) * unconditional


def guided(kind: str, teacher: nn.Module, weak_teacher: nn.Module, null_label: int) -> VelocityField:
    """The velocity of a teacher's network under a kind of guidance.

    Args:
        kind: autoguidance, classifier_free or none.
        null_label: the teacher's index of 'no label'.

    Raises:
        AyfError: for another kind.
    """
    field = NetworkVelocity(teacher)
    if kind == "autoguidance":
        return Autoguidance(field, NetworkVelocity(weak_teacher))
    if kind == "classifier_free":
        return ClassifierFreeGuidance(field, null_label)
    if kind == "none":
        return field
    raise AyfError(f"unknown guidance '{kind}': choose autoguidance, classifier_free or none")
