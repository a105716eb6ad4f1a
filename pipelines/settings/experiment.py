"""The settings of an experiment, the tree of `params.yaml`: composed of the settings of the library's components.

`params.yaml` holds every value; nothing that changes a result has a default. `load_config` reads and checks the file
before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.objectives.tangent import TangentSettings
from ayf_core.registry import Chosen, plugins, use_plugins
from ayf_core.settings import chosen, each, group, setting
from ayf_core.training_settings import TrainingSettings
from pipelines.settings import tree
from pipelines.settings.places import PARAMS_FILE
from pipelines.settings.yaml_file import YamlFile, read_yaml


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

    def with_values(self, values: Mapping[str, Any]) -> Config:
        """A copy with other values, by dotted keys.

        Raises:
            AyfError: a key is unknown, a value is wrong, or the settings no longer agree.
        """
        changed = self.to_dict()
        for key, value in values.items():
            tree.with_value(changed, key, value)
        config, problems = checked(tree.without_foreign(Config, changed))
        if config is None or problems:
            raise AyfError(problems[0])
        return config


def load_config(root: Path) -> Config:
    """The checked settings of the project at `root`; its plug-ins are in use from then on.

    Raises:
        AyfError: the first thing wrong with `params.yaml`, and how many more there are.
    """
    config, problems = read_config(root)
    if config is None or problems:
        more = f" (and {len(problems) - 1} more: see `ayf params check`)" if len(problems) > 1 else ""
        raise AyfError(problems[0] + more)
    return config


def read_config(root: Path) -> tuple[Config | None, list[str]]:
    """`params.yaml` and a line for everything wrong with it; no config where it could not be typed.

    Raises:
        AyfError: there is no such file, or it is not YAML.
    """
    file = read_params(root)
    values = file.values
    try:
        use_plugins_of(values, root)
    except AyfError as error:
        return None, [file.located(str(error))]
    config, problems = checked(values, root)
    return config, [file.located(problem) for problem in problems]


def read_params(root: Path) -> YamlFile:
    """`params.yaml`, unchecked.

    Raises:
        AyfError: there is no such file, or it is not YAML.
    """
    return read_yaml(root / PARAMS_FILE, "write one with `ayf params use preset=digits`")


def use_plugins_of(values: Mapping[str, Any], root: Path) -> None:
    """Put the plug-ins that settings name in use, beside those that are; what is no list is left to the check of types.

    Raises:
        AyfError: one of them cannot be found.
    """
    named = values.get("plugins")
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        return
    more = [name for name in named if name not in plugins()]
    if more:
        use_plugins([*plugins(), *more], root)


def checked(values: Mapping[str, Any], root: Path | None = None) -> tuple[Config | None, list[str]]:
    """Plain values as a `Config`, and a line for everything wrong with them, which begins with the key.

    Args:
        root: the project, to look whether the folders that settings name are there; None does not look.
    """
    from pipelines.settings.agreement import disagreements

    problems = tree.problems_of(Config, values)
    if problems:  # disagreements of values that are wrong by themselves would only repeat the complaint
        return None, problems
    config = tree.build(Config, values)
    return config, disagreements(config, root)
