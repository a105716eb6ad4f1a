"""Settings that are valid one by one but not together; what a component knows of itself it says itself (`problems`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ayf_core.errors import AyfError
from ayf_core.registry import Chosen, find
from pipelines.settings.words import literal, nearest, number

if TYPE_CHECKING:
    from ayf_core.training_settings import TrainingSettings
    from pipelines.settings.experiment import Config

POINT = (2,)
"""The shape of an example that has no sides."""
BEFORE_THE_STUDENTS = ("teacher", "weak_teacher")


def disagreements(config: Config, root: Path | None = None) -> list[str]:
    """A line, which begins with a key, for everything that does not go together.

    Args:
        root: the project: whether folders that settings name are there is looked up below it; None does not look.
    """
    own = list(_own_problems(config))
    return own or [
        *_data_problems(config, root),
        *_shape_problems(config),
        *_training_problems(config),
        *_guidance_problems(config),
        *_model_problems(config),
    ]


def _own_problems(config: Config) -> Iterator[str]:
    """What the chosen components find wrong with their own settings."""
    chosen = {
        "data": config.data,
        "codec": config.codec,
        "features": config.features,
        "distill.guidance": config.distill.guidance,
        "distill.time_law": config.distill.time_law,
    }
    for name in BEFORE_THE_STUDENTS:
        teacher = getattr(config, name)
        chosen |= {f"{name}.network": teacher.network, f"{name}.time_law": teacher.time_law}
    for key, component in chosen.items():
        if hasattr(component.component.load(), "problems"):
            yield from (f"{key}.{line}" for line in component.build().problems())


def _data_problems(config: Config, root: Path | None) -> Iterator[str]:
    for folder in config.data.build().reads():
        name = next((name for name, value in config.data.values.items() if value == str(folder)), "name")
        if root is not None and not (root / folder).is_dir():
            yield f"data.{name} = {literal(str(folder))}: there is no such folder; make it, or name another"


def _shape_problems(config: Config) -> Iterator[str]:
    """What cannot work for the shape of the data, as far as that is known before they are read."""
    data, codec = config.data.build(), config.codec.build()
    if "points" in config.data.component.facts["gives"]:
        if codec.halvings() != 0:
            yield f"codec.kind = {config.codec.kind}: data.name = {config.data.kind} has no images; choose identity"
        try:
            config.features.build().check(POINT, 2)
        except AyfError as error:
            yield str(error)
        yield from _network_problems(config, POINT)
        return
    levels = codec.halvings()
    if data.side is None or levels is None:
        return
    if data.side % 2**levels:
        yield (
            f"codec.channels = {literal(config.codec.values.get('channels'))}: halves the side {data.side} {levels} "
            f"times; name fewer levels or choose images whose side is a multiple of {2**levels}"
        )
        return
    side = data.side // 2**levels
    yield from _network_problems(config, (1, side, side))


def _network_problems(config: Config, latent_shape: tuple[int, ...]) -> Iterator[str]:
    from ayf_core.networks.discriminator import check_shape

    for name in BEFORE_THE_STUDENTS:
        network: Chosen = getattr(config, name).network
        try:
            network.build().check(latent_shape)
        except AyfError as error:
            yield f"{name}.network.kind = {network.kind}: {error}"
    try:
        check_shape(latent_shape)
    except AyfError as error:
        yield f"codec.kind = {config.codec.kind}: {error}"


def _training_problems(config: Config) -> Iterator[str]:
    for key, training in trainings(config).items():
        if training.warmup_steps >= training.steps:
            yield (
                f"{key}.warmup_steps = {training.warmup_steps}: must be below "
                f"{key}.steps = {training.steps}; lower it or train longer"
            )
        if training.ema_std not in training.ema_stds:
            yield (
                f"{key}.ema_std = {number(training.ema_std)}: must be one of {key}.ema_stds = "
                f"{literal(training.ema_stds)}; choose one or add it there"
            )


def trainings(config: Config) -> dict[str, TrainingSettings]:
    """Every group of training settings there is, by its key."""
    found = {key: chosen.values.get("training") for key, chosen in _trained(config).items()}
    return {f"{key}.training": training for key, training in found.items() if training is not None} | {
        "teacher.training": config.teacher.training,
        "weak_teacher.training": config.weak_teacher.training,
        **{f"distill.{name}.training": student.training for name, student in config.distill.students.items()},
        "adversarial.training": config.adversarial.training,
    }


def _trained(config: Config) -> dict[str, Chosen]:
    return {"codec": config.codec, "features": config.features}


def _guidance_problems(config: Config) -> Iterator[str]:
    limits, asked = config.distill.guidance.build().range, config.evaluation.guidance_scales
    outside = [scale for scale in asked if limits is not None and scale not in limits]
    if outside:
        yield (
            f"evaluation.guidance_scales = {literal(asked)}: the student learns scales from {number(limits.minimum)} "
            f"to {number(limits.maximum)} only; drop {literal(outside)} or widen distill.guidance"
        )
    if config.distill.guidance.component.facts.get("needs_dropped_conditions") and config.teacher.label_dropout == 0:
        yield (
            f"teacher.label_dropout = 0.0: distill.guidance.kind = {config.distill.guidance.kind} needs a teacher that "
            "also knows no label; set it to about 0.1"
        )


def _model_problems(config: Config) -> Iterator[str]:
    """Objectives in the list that they belong to, and models that are made."""
    for key, needs_teacher in (("objectives", True), ("without_teacher", False)):
        for name in getattr(config.distill, key):
            if bool(find("objective", name).facts["needs_teacher"]) != needs_teacher:
                other = "without_teacher" if needs_teacher else "objectives"
                needs = "needs no teacher" if needs_teacher else "needs a teacher"
                yield f"distill.{key}: {name} {needs}; name it in distill.{other}"
    students = [*config.distill.objectives, *config.distill.without_teacher]
    if config.adversarial.student not in config.distill.objectives:
        yield (
            f"adversarial.student = {literal(config.adversarial.student)}: must be one of distill.objectives = "
            f"{literal(config.distill.objectives)}; choose one or add it there"
        )
    made = ["teacher", "weak_teacher", *students, "adversarial"]
    for name in config.evaluation.models:
        if name not in made:
            guess = nearest(name, made)
            hint = f"did you mean {guess}?" if guess else f"choose from {', '.join(made)}"
            yield f"evaluation.models holds {name}, which nothing makes: {hint}"
