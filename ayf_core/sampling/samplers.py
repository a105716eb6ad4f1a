"""How a trained network is sampled: a student by jumps of its flow map, a teacher by an ODE solver, one signature.

Which of the two a model needs is decided once, when it is loaded; whoever samples, measures or draws it asks the
sampler instead of asking what the model is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.flow_map import FlowMap
from ayf_core.guidance.scale import UNGUIDED, GuidanceRange
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.sampling.flow_map_chain import sample_flow_map
from ayf_core.sampling.grids import Grid, uniform_grid
from ayf_core.sampling.ode import solve_ode
from ayf_core.sampling.points import NoiseSource, Samples
from ayf_core.velocity import NetworkVelocity, VelocityField


class EvaluationPlan(Protocol):
    """What an evaluation asks of its models; a sampler picks what concerns it."""

    @property
    def steps(self) -> Sequence[int]: ...
    @property
    def teacher_evaluations(self) -> Sequence[int]: ...
    @property
    def guidance_scales(self) -> Sequence[float]: ...
    @property
    def guidance_steps(self) -> int: ...
    @property
    def gammas(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class Sampler(ABC):
    """Draws from one network.

    Attributes:
        guidance: the guidance scales that the network learnt, None where it is not told any.
        takes_settings: whether there are `SamplingSettings` to choose (times, γ, λ).
        words: what the way of sampling is called where it takes no settings.
        preview_evaluations: enough for a first look at what it draws.
    """

    network: MeanVelocityNetwork
    guidance: GuidanceRange | None = None
    takes_settings: ClassVar[bool]
    words: ClassVar[str]
    preview_evaluations: ClassVar[int]

    @abstractmethod
    def sample(
        self,
        noise: Float[Tensor, "batch *dims"],
        evaluations: int,
        condition: Condition | None = None,
        *,
        guidance_scale: float | None = None,
        gamma: float = 0.0,
        times: Grid | None = None,
        generator: NoiseSource | None = None,
    ) -> Samples:
        """Samples [B, *D] from noise by so many steps or calls; see `Generator.sample` for the arguments."""

    @abstractmethod
    def evaluations(self, plan: EvaluationPlan) -> list[int]:
        """At which numbers of evaluations the model is measured."""

    @abstractmethod
    def guidance_curve(self, plan: EvaluationPlan) -> list[tuple[int, float]]:
        """(evaluations, λ) at which the model is measured against λ; none of a model that knows no λ."""

    @abstractmethod
    def scales(self, asked: Sequence[float]) -> list[float | None]:
        """Of the guidance scales that are asked for, those to show pictures of; [None] of a model without λ."""

    @abstractmethod
    def effective_scale(self, asked: float | None) -> float | None:
        """λ as it acts on the samples: where it is equal for two that are asked for, so are the samples."""

    @abstractmethod
    def nfe(self, evaluations: int, guidance_scale: float | None = None) -> int:
        """Network evaluations that a sample costs: what `Samples.nfe` will count."""

    @abstractmethod
    def gamma_curve(self, plan: EvaluationPlan) -> list[tuple[int, float]]:
        """(evaluations, γ) at which the model is measured against γ; none where there is no γ."""

    @abstractmethod
    def guided_by(self, field: VelocityField) -> Self:
        """The sampler of a model that is guided from outside by `field`, where it can be."""


@dataclass(frozen=True)
class StudentSampler(Sampler):
    """A flow map: one evaluation a step, whatever its guidance scale."""

    takes_settings = True
    words = "jumps"
    preview_evaluations = 4

    def sample(
        self,
        noise: Float[Tensor, "batch *dims"],
        evaluations: int,
        condition: Condition | None = None,
        *,
        guidance_scale: float | None = None,
        gamma: float = 0.0,
        times: Grid | None = None,
        generator: NoiseSource | None = None,
    ) -> Samples:
        if self.guidance is None and guidance_scale not in (None, UNGUIDED):
            raise AyfError("this student was distilled without guidance: leave the guidance scale out")
        told = guidance_scale if self.guidance is None else self.guidance.check(guidance_scale)
        times = uniform_grid(evaluations) if times is None else times
        if len(times) != evaluations + 1:
            raise AyfError(f"{evaluations} steps need {evaluations + 1} times, got {len(times)}")
        flow_map = FlowMap(self.network)
        return sample_flow_map(flow_map, noise, times, condition, _for_all(told, noise), gamma, generator)

    def evaluations(self, plan: EvaluationPlan) -> list[int]:
        return list(plan.steps)

    def guidance_curve(self, plan: EvaluationPlan) -> list[tuple[int, float]]:
        return [(plan.guidance_steps, scale) for scale in self.scales(plan.guidance_scales) if scale is not None]

    def scales(self, asked: Sequence[float]) -> list[float | None]:
        learnt = self.guidance
        return [None] if learnt is None else [scale for scale in asked if scale in learnt]

    def effective_scale(self, asked: float | None) -> float | None:
        return None if self.guidance is None else self.guidance.check(asked)

    def nfe(self, evaluations: int, guidance_scale: float | None = None) -> int:
        return evaluations

    def gamma_curve(self, plan: EvaluationPlan) -> list[tuple[int, float]]:
        return [(plan.guidance_steps, gamma) for gamma in plan.gammas]

    def guided_by(self, field: VelocityField) -> Self:
        """Itself: its guidance was distilled into it."""
        return self


@dataclass(frozen=True)
class TeacherSampler(Sampler):
    """A velocity, followed by Heun's method for an odd number of calls and Euler's for an even one.

    Attributes:
        guided: the guided field that is asked where a guidance scale is given.
    """

    guided: VelocityField | None = None
    takes_settings = False
    words = "an ODE solver"
    preview_evaluations = 15

    def sample(
        self,
        noise: Float[Tensor, "batch *dims"],
        evaluations: int,
        condition: Condition | None = None,
        *,
        guidance_scale: float | None = None,
        gamma: float = 0.0,
        times: Grid | None = None,
        generator: NoiseSource | None = None,
    ) -> Samples:
        if times is not None:
            raise AyfError("a velocity network is sampled on the uniform grid: leave the times out")
        if gamma:
            raise AyfError("a velocity network is sampled by an ODE solver, which adds no noise: leave gamma out")
        if guidance_scale not in (None, UNGUIDED) and self.guided is None:
            raise AyfError("a velocity network has no guidance by itself: name a distilled student, or a guided field")
        asked = self.guided if guidance_scale is not None else None
        field = asked if asked is not None else NetworkVelocity(self.network)
        # An odd number of calls is Heun's (its last step is Euler's); an even one can only be Euler's.
        heun = evaluations % 2 == 1
        grid = uniform_grid((evaluations + 1) // 2 if heun else evaluations)
        scale = _for_all(guidance_scale, noise)
        return solve_ode(field, noise, grid, "heun" if heun else "euler", condition, scale)

    def evaluations(self, plan: EvaluationPlan) -> list[int]:
        return list(plan.teacher_evaluations)

    def guidance_curve(self, plan: EvaluationPlan) -> list[tuple[int, float]]:
        if self.guided is None:
            return []
        calls = sorted(plan.teacher_evaluations)
        return [(calls[len(calls) // 2], scale) for scale in plan.guidance_scales]

    def scales(self, asked: Sequence[float]) -> list[float | None]:
        return [None]

    def effective_scale(self, asked: float | None) -> float | None:
        # λ = 1 takes all of the teacher and nothing of the other network: the same velocity, at twice the price.
        return None if asked == UNGUIDED else asked

    def nfe(self, evaluations: int, guidance_scale: float | None = None) -> int:
        guided = self.guided if guidance_scale is not None else None
        return evaluations * (1 if guided is None else guided.evaluations_per_call)

    def gamma_curve(self, plan: EvaluationPlan) -> list[tuple[int, float]]:
        return []

    def guided_by(self, field: VelocityField) -> Self:
        return replace(self, guided=field)


SAMPLERS: dict[str, type[Sampler]] = {"flow_map": StudentSampler, "velocity": TeacherSampler}
"""The sampler for each role that a model's card may name."""


def sampler_of(role: str, network: MeanVelocityNetwork, guidance: GuidanceRange | None = None) -> Sampler:
    """The sampler of a network of this role.

    Raises:
        AyfError: no such role.
    """
    if role not in SAMPLERS:
        raise AyfError(f"its role is {role!r}, which must be {' or '.join(SAMPLERS)}: train the model again")
    return SAMPLERS[role](network, guidance)


def _for_all(scale: float | None, noise: Tensor) -> Tensor | None:
    return None if scale is None else torch.full((len(noise),), scale, device=noise.device)
