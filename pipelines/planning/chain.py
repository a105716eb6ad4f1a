"""The trainings of an experiment, put together from its settings as the stages do, without their data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ayf_core.conditions import Condition
from ayf_core.data.sets.base import Outline
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.build import build_network
from ayf_core.planning.step import Planned, Trained
from ayf_core.precision import compute_in
from ayf_core.registry import find
from ayf_core.training.phases import Phase
from ayf_core.velocity import VelocityField
from pipelines.stages.assembly import network_spec
from pipelines.stages.distill import distillation, guidance_of, needs_teacher
from pipelines.stages.finetune_adversarial import adversarial_phases, discriminator_for
from pipelines.stages.train_codec import Reconstruction
from pipelines.stages.train_features import classification
from pipelines.stages.train_teacher import flow_matching

if TYPE_CHECKING:
    from pipelines.settings import experiment as schema


@dataclass(frozen=True)
class Latents:
    """What the latents will be like."""

    shape: tuple[int, ...]
    num_classes: int


@dataclass(frozen=True)
class Chain:
    """The trainings of an experiment on data of an outline, each by its stage's name in dvc.yaml.

    Attributes:
        codec: made for the data; where it is trained here, its tensors have no contents.
        remote_teachers: whether teachers are held by processes of their own, not beside the student.
    """

    config: schema.Config
    data: Outline
    codec: Any
    latents: Latents
    remote_teachers: bool = False

    @classmethod
    def of(cls, config: schema.Config, data: Outline, remote_teachers: bool = False) -> Chain:
        """The chain, with the codec that its settings ask for.

        Raises:
            AyfError: the codec does not suit the data, or a pretrained one cannot be read.
        """
        codec = _codec(config, data)
        return cls(
            config, data, codec, Latents(tuple(codec.latent_shape(data.shape)), data.num_classes), remote_teachers
        )

    def trainings(self) -> dict[str, Planned]:
        """All of them, in the order in which they run."""
        config = self.config
        found: dict[str, Callable[[], Planned]] = {}
        if config.codec.build().needs_training:
            found["train_codec"] = self._codec_training
        if config.features.build().needs_training:
            found["train_features"] = self._features_training
        found["train_teacher"] = partial(self._teacher_training, config.teacher, "teacher")
        found["train_weak_teacher"] = partial(self._teacher_training, config.weak_teacher, "weak_teacher")
        for stage, names in (
            ("distill", config.distill.objectives),
            ("train_flow_map", config.distill.without_teacher),
        ):
            found |= {f"{stage}@{name}": partial(self._student_training, name) for name in names}
        found["finetune_adversarial"] = self._adversarial_training
        return {name: make() for name, make in found.items()}

    def fake_codec(self) -> Any:
        """The codec, where tensors are fake: one that is trained here is made anew."""
        choice: Any = self.config.codec.build()
        return choice.make(self.data.shape) if choice.needs_training else self.codec

    @property
    def codec_bytes(self) -> int:
        """Of the codec's weights, where models carry a copy of it."""
        if not self.config.codec.build().needs_training:
            return 0
        return sum(parameter.numel() * parameter.element_size() for parameter in self.codec.parameters())

    def network(self, model: str) -> MeanVelocityNetwork:
        """A model of the chain, as `evaluation.models` calls it, freshly built."""
        config = self.config
        if model in ("teacher", "weak_teacher"):
            return build_network(network_spec(getattr(config, model).network, self.latents))
        return self._student(config.adversarial.student if model == "adversarial" else model)

    def _codec_training(self) -> Planned:
        choice: Any = self.config.codec.build()

        def build() -> Trained:
            objective = Reconstruction(self.latents.shape)
            return Trained([Phase(name="codec", network=choice.make(self.data.shape), objective=objective)])

        return Planned(settings=choice.training, shape=self.data.shape, build=build)

    def _features_training(self) -> Planned:
        choice: Any = self.config.features.build()

        def build() -> Trained:
            network = choice.new(self.data.shape, self.data.num_classes)
            return Trained([Phase(name="features", network=network, objective=classification)])

        return Planned(settings=choice.training, shape=self.data.shape, build=build)

    def _teacher_training(self, teacher: schema.Teacher, name: str) -> Planned:
        def build() -> Trained:
            network = build_network(network_spec(teacher.network, self.latents))
            return Trained([Phase(name=name, network=network, objective=flow_matching(teacher, network.spec))])

        return Planned(settings=teacher.training, shape=self.latents.shape, build=build)

    def _student_training(self, name: str) -> Planned:
        distill = self.config.distill
        training = distill.students[name].training

        def build() -> Trained:
            velocity, frozen = self._teachers(name, training.precision)
            objective = distillation(distill, name, velocity, training.steps)
            return Trained([Phase(name=name, network=self._student(name), objective=objective)], frozen)

        return Planned(settings=training, shape=self.latents.shape, build=build)

    def _adversarial_training(self) -> Planned:
        config = self.config
        adversarial, name = config.adversarial, config.adversarial.student

        def build() -> Trained:
            velocity, frozen = self._teachers(name, adversarial.training.precision)
            network = self._student(name)
            distilled = distillation(config.distill, name, velocity, adversarial.training.steps)
            discriminator = discriminator_for(adversarial, network, self.latents)
            limits = guidance_of(config.distill, name).range
            return Trained(adversarial_phases(adversarial, distilled, network, discriminator, limits), frozen)

        return Planned(settings=adversarial.training, shape=self.latents.shape, build=build)

    def _student(self, name: str) -> MeanVelocityNetwork:
        spec = network_spec(self.config.teacher.network, self.latents)
        guided = guidance_of(self.config.distill, name).range is not None
        return build_network(dataclasses.replace(spec, interval=True, guidance=guided))

    def _teachers(self, name: str, precision: str) -> tuple[VelocityField | None, list[nn.Module]]:
        """The velocity that a student learns from, and the networks that its worker holds for it."""
        if not needs_teacher(name):
            return None, []
        if self.remote_teachers:
            return _RemoteVelocity(), []
        strong, weak = (self.network(model).eval().requires_grad_(False) for model in ("teacher", "weak_teacher"))
        for network in (strong, weak):
            compute_in(precision, network)
        guidance = find("guidance", self.config.distill.guidance.kind).load()
        return guidance.build(strong, weak, strong.spec.conditions), [strong, weak]


class _RemoteVelocity:
    """A velocity that another process computes."""

    evaluations_per_call = 0

    def __call__(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        return torch.zeros_like(x)


def _codec(config: schema.Config, data: Outline) -> Any:
    choice: Any = config.codec.build()
    if not choice.needs_training:
        return choice.make(data.shape)
    with torch.device("meta"):
        return choice.make(data.shape)
