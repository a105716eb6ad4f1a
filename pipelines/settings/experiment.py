"""The settings of an experiment, the tree of `params.yaml`: composed of the settings of the library's components.

`params.yaml` holds every value; nothing that changes a result has a default. `pipelines.settings.reading` reads and
checks it before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ayf_core.objectives.tangent import TangentSettings
from ayf_core.registry import Chosen
from ayf_core.settings import chosen, each, group, setting
from ayf_core.training_settings import TrainingSettings
from pipelines.settings import tree


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A flow-matching model."""

    network: Chosen = chosen("network", "the network")
    time_law: Chosen = chosen("time law", "law of t")
    label_dropout: float = setting("share of samples trained without their label", at_least=0.0, below=1.0)
    training: TrainingSettings = group("how it is trained")


@dataclass(frozen=True, kw_only=True)
class Student:
    """A flow map: by which objective, and how it is trained."""

    component: Chosen
    training: TrainingSettings = group("how this student is trained")


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Teacher to flow maps: what the students share, and each student."""

    objectives: list[str] = setting("a student of the teacher for each", room="objective")
    without_teacher: list[str] = setting(
        "a flow map from the data alone for each, of the teacher's network", room="objective", may_be_empty=True
    )
    guidance: Chosen = chosen("guidance", "guidance of the teacher while distilling")
    time_law: Chosen = chosen("pair law", "law of the pairs (t, s)")
    tangent: TangentSettings = group("derivative along the trajectory")
    weighting: str = setting("w(t, s) of the loss", room="weighting")
    students: Mapping[str, Student] = each(
        "objective", "a student", by=("objectives", "without_teacher"), schema=Student
    )


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSettings:
    """The discriminator of the adversarial finish."""

    width: int = setting("base width", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """The adversarial finish of one student."""

    student: str = setting("which student is finished, one of distill.objectives")
    discriminator: DiscriminatorSettings = group("the discriminator")
    weight: float = setting("weight of the adversarial loss after gradient balancing", at_least=0.0)
    r1: float = setting("gradient penalty on real samples", at_least=0.0)
    r2: float = setting("gradient penalty on generated samples", at_least=0.0)
    discriminator_learning_rate: float = setting("Adam's, for the discriminator", above=0.0)
    training: TrainingSettings = group("how the student is finished")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, and how often."""

    models: list[str] = setting("the models that are measured")
    seeds: int = setting("independent repetitions behind every interval", at_least=1)
    steps: list[int] = setting("student steps", at_least=1)
    teacher_evaluations: list[int] = setting("network evaluations given to the teacher", at_least=1)
    guidance_scales: list[float] = setting("λ of the guidance curves", at_least=0.0)
    guidance_steps: int = setting("student steps of the guidance curves", at_least=1)
    gammas: list[float] = setting("γ of γ-sampling; 0 = deterministic", at_least=0.0, at_most=1.0)
    neighbours: int = setting("k of precision, recall, density and coverage", at_least=1)
    batch_size: int = setting("samples generated at once", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a result; the tree of `params.yaml`."""

    plugins: list[str] = setting("packages of your own that add components", may_be_empty=True)
    seed: int = setting("of every random choice", at_least=0, at_most=2**31 - 1)
    data: Chosen = chosen("data set", "what is modelled", by="name")
    codec: Chosen = chosen("codec", "between data and latents")
    features: Chosen = chosen("features", "space of the Fréchet distance")
    teacher: Teacher = group("the flow-matching model that is distilled")
    weak_teacher: Teacher = group("the worse model that autoguidance steers away from")
    distill: Distill = group("teacher to flow map")
    adversarial: Adversarial = group("adversarial finish of one student")
    evaluation: Evaluation = group("what is measured")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain nested dicts."""
        return tree.plain(Config, self)

    def keys(self) -> tree.Keys:
        """What there is to set, with the components that are chosen here."""
        return tree.keys_of(Config, self.to_dict())
