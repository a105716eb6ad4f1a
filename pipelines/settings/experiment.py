"""The settings of an experiment: their types, ranges and what must agree.

``params.yaml`` holds every value; the dataclasses below hold no default for anything that changes a result.
:func:`load_config` reads and checks the file before any work.
"""

# ruff: noqa: RUF009  (`setting` is dataclasses.field with a meaning and a range; it builds nothing to share)

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayf_core.errors import AyfError
from ayf_core.registry import find
from pipelines.settings import model as settings
from pipelines.settings.documents import located, read_document, type_problem
from pipelines.settings.model import setting

if TYPE_CHECKING:
    from omegaconf import DictConfig

PARAMS_FILE = "params.yaml"
SMALLEST_LATENT_SIDE = 4
"""The discriminator that finishes a student takes no smaller latents."""


# --- science settings -------------------------------------------------------------------------------


@dataclass
class Data:
    name: str = setting("data set", choices=("digits", "checkerboard", "folder"))
    folder: str | None = setting("folder of images, one sub-folder a class (name: folder)")
    image_size: int | None = setting("side in pixels; null = as the data come", at_least=2)
    size: int | None = setting("how many points to draw (name: checkerboard)", at_least=16)
    test_fraction: float = setting("share held out for evaluation", above=0.0, at_most=0.5)

    @property
    def kind(self) -> str:
        """``points`` for 2-D data, else ``images``."""
        return "points" if self.name == "checkerboard" else "images"


@dataclass
class Training:
    steps: int = setting("optimiser steps", at_least=1)
    batch_size: int = setting("global batch: the same whatever the number of workers", at_least=1)
    learning_rate: float = setting("Adam's, after warm-up", above=0.0)
    beta1: float = setting("Adam's first decay", at_least=0.0, below=1.0)
    beta2: float = setting("Adam's second decay", at_least=0.0, below=1.0)
    weight_decay: float = setting("decoupled weight decay", at_least=0.0)
    warmup_steps: int = setting("steps of linear warm-up of the learning rate", at_least=0)
    schedule: str = setting("learning rate after warm-up", choices=("cosine", "constant"))
    gradient_clip: float = setting("largest gradient norm", above=0.0)
    ema_stds: list[float] = setting("relative widths of the averages kept (EDM2)", above=0.0, at_most=0.28)
    ema_std: float = setting("width of the one that is published", above=0.0, at_most=0.28)


@dataclass
class Codec:
    kind: str = setting("how data become latents", choices=("autoencoder_kl", "identity"))
    pretrained: str | None = setting("local folder or hub id: nothing is trained then")
    latent_channels: int = setting("channels of a latent", at_least=1)
    channels: list[int] = setting("width a level; each level after the first halves the side", at_least=1, repeats=True)
    layers_per_block: int = setting("residual layers a level", at_least=1)
    kl_weight: float = setting("weight of the KL term", at_least=0.0)
    training: Training = setting("how the codec is trained")


@dataclass
class Features:
    kind: str = setting("space of the Fréchet distance", choices=("classifier", "pixels", "inception"))
    width: int = setting("width of the classifier", at_least=1)
    training: Training = setting("how the classifier is trained")


@dataclass
class Network:
    kind: str = setting("dit for images, mlp for 2-D points", choices=("dit", "mlp"))
    width: int = setting("hidden width", at_least=2)
    depth: int = setting("number of blocks", at_least=1)
    heads: int = setting("attention heads (dit)", at_least=1)
    patch_size: int = setting("side of a patch of latents (dit)", at_least=1)
    activation: str = setting("non-linearity (mlp)", choices=("silu", "relu", "gelu"))


@dataclass
class TeacherTimes:
    mean: float = setting("t = sigmoid(N(mean, std))")
    std: float = setting("wider: more of the ends", above=0.0)


@dataclass
class Teacher:
    network: Network = setting("the network")
    time_law: TeacherTimes = setting("law of t")
    label_dropout: float = setting("share of samples trained without their label", at_least=0.0, below=1.0)
    training: Training = setting("how it is trained")


@dataclass
class Guidance:
    kind: str = setting("what guides the teacher", choices=("autoguidance", "classifier_free", "none"))
    scale_min: float = setting("smallest guidance scale λ drawn; 1 = unguided", at_least=0.0)
    scale_max: float = setting("largest guidance scale λ drawn; the student takes λ as an input", at_least=0.0)


@dataclass
class TimeLaw:
    p_mean: float = setting("|t - s| = sigmoid(N(p_mean, p_std)); paper: -0.8 or -0.6")
    p_std: float = setting("paper: 1.0 or 1.6", above=0.0)
    full_jump_fraction: float = setting("share of pairs t = 1, s = 0", at_least=0.0, at_most=1.0)
    diagonal_fraction: float = setting("share of pairs t = s", at_least=0.0, at_most=1.0)


@dataclass
class Tangent:
    backend: str = setting("how d/dt of the network is taken", choices=("split", "fused", "finite_difference"))
    warmup_max: float = setting("final weight r of the tangent's derivative term", at_least=0.0, at_most=1.0)
    warmup_fraction: float = setting("share of the steps over which r grows", at_least=0.0, at_most=1.0)
    normalise: bool = setting("divide the tangent by its norm + c")
    normalisation_constant: float = setting("that c", above=0.0)
    divide_by_sqrt_dim: bool = setting("take the norm per dimension: |.| / sqrt(D)")
    self_check_tolerance: float = setting("largest error of the derivative before training starts", above=0.0)


@dataclass
class Objective:
    training: Training = setting("how this student is trained")


@dataclass
class Distill:
    guidance: Guidance = setting("guidance of the teacher while distilling")
    time_law: TimeLaw = setting("law of the pairs (t, s)")
    tangent: Tangent = setting("derivative along the trajectory")
    weighting: str = setting("w(t, s) of the loss", choices=("uniform", "interval"))
    emd: Objective = setting("student by Eulerian map distillation")
    lmd: Objective = setting("student by Lagrangian map distillation")


@dataclass
class Discriminator:
    width: int = setting("base width", at_least=1)


@dataclass
class Adversarial:
    student: str = setting("which student is finished", choices=("emd", "lmd"))
    discriminator: Discriminator = setting("the discriminator")
    weight: float = setting("weight of the adversarial loss after gradient balancing", at_least=0.0)
    r1: float = setting("gradient penalty on real samples", at_least=0.0)
    r2: float = setting("gradient penalty on generated samples", at_least=0.0)
    discriminator_learning_rate: float = setting("Adam's, for the discriminator", above=0.0)
    training: Training = setting("how the student is finished")


@dataclass
class Evaluation:
    seeds: int = setting("independent repetitions behind every interval", at_least=1)
    steps: list[int] = setting("student steps", at_least=1)
    teacher_evaluations: list[int] = setting("network evaluations given to the teacher", at_least=1)
    guidance_scales: list[float] = setting("λ of the guidance curves", at_least=0.0)
    guidance_steps: int = setting("student steps of the guidance curves", at_least=1)
    gammas: list[float] = setting("γ of γ-sampling; 0 = deterministic", at_least=0.0, at_most=1.0)
    neighbours: int = setting("k of precision, recall, density and coverage", at_least=1)
    batch_size: int = setting("samples generated at once", at_least=1)


@dataclass
class Config:
    """Everything that decides a result; the tree of ``params.yaml``."""

    seed: int = setting("of every random choice", at_least=0, at_most=2**31 - 1)
    data: Data = setting("what is modelled")
    codec: Codec = setting("between data and latents")
    features: Features = setting("features for the evaluation")
    teacher: Teacher = setting("the flow-matching model that is distilled")
    weak_teacher: Teacher = setting("the worse model that autoguidance steers away from")
    distill: Distill = setting("teacher to flow map")
    adversarial: Adversarial = setting("adversarial finish of one student")
    evaluation: Evaluation = setting("what is measured")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain nested dicts, for workers, MLflow and :func:`config_subtree`."""
        return dataclasses.asdict(self)

    def with_values(self, values: Mapping[str, Any]) -> Config:
        """A copy with other values, by dotted keys, each of its setting's type.

        Raises:
            AyfError: a key is unknown, a value is out of range, or the settings no longer agree.
        """
        changed = copy.deepcopy(self)
        for key, value in values.items():
            if key not in settings.settings_of(Config):
                raise AyfError(settings.unknown_key(key, Config))
            group, _, name = key.rpartition(".")
            setattr(_member(changed, group) if group else changed, name, value)
        problems = settings.range_problems(changed.to_dict(), Config) or disagreements(changed)
        if problems:
            raise AyfError(problems[0])
        return changed


# --- settings that must agree -----------------------------------------------------------------------


def disagreements(config: Config) -> list[str]:
    """A line for each group of settings that are valid one by one but not together."""
    return [
        *_data_disagreements(config),
        *_network_disagreements(config),
        *_training_disagreements(config),
        *_guidance_disagreements(config),
    ]


def _data_disagreements(config: Config) -> Iterator[str]:
    data, codec, features = config.data, config.codec, config.features
    if data.name == "folder" and data.folder is None:
        yield "data.folder = null: data.name = folder needs a folder of images; set data.folder"
    if data.name != "folder" and data.folder is not None:
        yield f"data.folder = {data.folder}: read only when data.name = folder; set it to null"
    if data.name == "folder" and data.image_size is None:
        yield "data.image_size = null: data.name = folder needs one size for all images; set data.image_size"
    if data.name == "checkerboard" and data.size is None:
        yield "data.size = null: data.name = checkerboard needs a number of points; set data.size"
    if data.name != "checkerboard" and data.size is not None:
        yield f"data.size = {data.size}: read only when data.name = checkerboard; set it to null"
    if data.kind == "points" and data.image_size is not None:
        yield f"data.image_size = {data.image_size}: data.name = {data.name} has no images; set it to null"
    if data.kind == "points" and codec.kind != "identity":
        yield f"codec.kind = {codec.kind}: data.name = {data.name} needs codec.kind = identity"
    if data.kind == "points" and features.kind != "pixels":
        yield f"features.kind = {features.kind}: data.name = {data.name} needs features.kind = pixels"
    if codec.kind == "autoencoder_kl":
        values = {key: getattr(codec, key) for key in ("latent_channels", "channels", "layers_per_block", "kl_weight")}
        yield from (f"codec.{line}" for line in find("codec", codec.kind).load()(**values).problems())
    if features.kind == "classifier":
        classifier = find("features", features.kind).load()(width=features.width)
        yield from (f"features.{line}" for line in classifier.problems())
    if codec.kind == "identity" and codec.pretrained is not None:
        yield f"codec.pretrained = {codec.pretrained}: codec.kind = identity reads none; set it to null"


def _network_disagreements(config: Config) -> Iterator[str]:
    data, codec = config.data, config.codec
    wanted = "mlp" if data.kind == "points" else "dit"
    side = data.image_size or (8 if data.name == "digits" else None)
    levels = len(codec.channels) - 1 if codec.kind == "autoencoder_kl" else 0
    # Of a pretrained codec neither the number of levels nor the side of its latents is known here.
    if data.kind == "points" or codec.pretrained is not None:
        side = None
    if side is not None and side % 2**levels:
        yield (
            f"codec.channels = {settings.literal(codec.channels)}: halves the side {side} {levels} times; "
            f"name fewer levels or set data.image_size to a multiple of {2**levels}"
        )
        side = None
    if side is not None and side // 2**levels < SMALLEST_LATENT_SIDE:
        yield (
            f"codec.channels = {settings.literal(codec.channels)}: latents get a side of {side // 2**levels}, at least "
            f"{SMALLEST_LATENT_SIDE} are needed; name fewer levels or raise data.image_size"
        )
    for name, network in (("teacher", config.teacher.network), ("weak_teacher", config.weak_teacher.network)):
        if network.kind != wanted:
            yield (
                f"{name}.network.kind = {network.kind}: data.name = {data.name} has {data.kind}; "
                f"set {name}.network.kind to {wanted}"
            )
        if network.kind != "dit":
            continue
        if network.width % network.heads:
            yield (
                f"{name}.network.width = {network.width}: must be a multiple of {name}.network.heads = "
                f"{network.heads}; change either"
            )
        if side is not None and (side // 2**levels) % network.patch_size:
            yield (
                f"{name}.network.patch_size = {network.patch_size}: must divide the latent side "
                f"{side // 2**levels}; choose a divisor"
            )


def _training_disagreements(config: Config) -> Iterator[str]:
    for key in TRAINING_GROUPS:
        training: Training = _member(config, key)
        if training.warmup_steps >= training.steps:
            yield (
                f"{key}.warmup_steps = {training.warmup_steps}: must be below "
                f"{key}.steps = {training.steps}; lower it or train longer"
            )
        if training.ema_std not in training.ema_stds:
            yield (
                f"{key}.ema_std = {settings.number(training.ema_std)}: must be one of {key}.ema_stds = "
                f"{settings.literal(training.ema_stds)}; choose one or add it there"
            )


def _guidance_disagreements(config: Config) -> Iterator[str]:
    guidance, law = config.distill.guidance, config.distill.time_law
    low, high = settings.number(guidance.scale_min), settings.number(guidance.scale_max)
    if guidance.scale_min > guidance.scale_max:
        yield (
            f"distill.guidance.scale_min = {low}: must be at most distill.guidance.scale_max = {high}; "
            "lower it or raise the other"
        )
    elif guidance.kind == "none" and (guidance.scale_min, guidance.scale_max) != (1.0, 1.0):
        yield (
            f"distill.guidance.kind = none: reads no scale, but scale_min = {low} and scale_max = {high}; "
            "set both to 1.0 or choose a kind of guidance"
        )
    else:
        outside = [
            scale
            for scale in config.evaluation.guidance_scales
            if not guidance.scale_min <= scale <= guidance.scale_max
        ]
        if outside:
            yield (
                f"evaluation.guidance_scales = {settings.literal(config.evaluation.guidance_scales)}: "
                f"the student learns scales from {low} to {high} only; drop {settings.literal(outside)} "
                "or widen distill.guidance"
            )
    if guidance.kind == "classifier_free" and config.teacher.label_dropout == 0:
        yield (
            "teacher.label_dropout = 0.0: distill.guidance.kind = classifier_free needs a teacher that also "
            "knows no label; set it to about 0.1"
        )
    if law.full_jump_fraction + law.diagonal_fraction > 1:
        yield (
            f"distill.time_law.full_jump_fraction = {settings.number(law.full_jump_fraction)}: together with "
            f"diagonal_fraction = {settings.number(law.diagonal_fraction)} above 1; lower either"
        )


TRAINING_GROUPS = tuple(
    key.removesuffix(".steps") for key in settings.settings_of(Config) if key.endswith("training.steps")
)


def _member(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


# --- reading ----------------------------------------------------------------------------------------


def load_config(root: Path) -> Config:
    """The checked settings of the project at ``root``.

    Raises:
        AyfError: the first thing wrong with ``params.yaml``, and how many more there are.
    """
    config, problems = read_config(root)
    if config is None or problems:
        more = f" (and {len(problems) - 1} more: see `ayf params check`)" if len(problems) > 1 else ""
        raise AyfError(problems[0] + more)
    return config


def read_config(root: Path) -> tuple[Config | None, list[str]]:
    """``params.yaml`` and a line for everything wrong with it; no config where it could not be typed.

    Raises:
        AyfError: there is no such file, or it is not YAML.
    """
    document = read_document(root / PARAMS_FILE, "write one with `ayf params use preset=digits`")
    problems = document.shape_problems(Config)
    if problems:
        return None, problems
    try:
        composed = compose(root, "root", [])
    except AyfError as error:
        return None, [located(document, str(error))]
    return checked(composed, lambda line: located(document, line))


def checked(composed: DictConfig, locate: Callable[[str], str] = str) -> tuple[Config | None, list[str]]:
    """A typed tree as a :class:`Config`, and a line for every value outside its range or in disagreement."""
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        return None, [locate(f"{key} is missing: add it") for key in missing]
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    # Disagreements of values that are wrong by themselves would only repeat the complaint.
    problems = settings.range_problems(config.to_dict(), Config) or disagreements(config)
    return config, [locate(line) for line in problems]


def compose(root: Path, recipe: str, overrides: Sequence[str]) -> DictConfig:
    """Hydra's composition of ``conf/<recipe>.yaml``: the typed schema, then the values, then ``overrides``.

    Not thread-safe (Hydra keeps a global): only for the driver process, never for a worker.

    Raises:
        AyfError: a value of the wrong type, or an override Hydra cannot read.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="schema", node=Config)
    search = 'hydra.searchpath=["file://' + str(root.resolve()).replace("\\", "\\\\").replace('"', '\\"') + '"]'
    try:
        with initialize_config_dir(str(conf_folder(root).resolve()), version_base="1.3"):
            return hydra_compose(recipe, overrides=[search, *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise AyfError(type_problem(error, Config)) from error


def conf_folder(root: Path) -> Path:
    """Where presets and runtimes live: the project's ``conf``, else the one beside this package."""
    own = root / "conf"
    return own if (own / "root.yaml").is_file() else Path(__file__).resolve().parents[2] / "conf"


def project_root(start: Path | None = None) -> Path:
    """The project that ``start`` (default: the working directory) lies in.

    Raises:
        AyfError: neither the folder nor any above it holds a project.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() or (folder / "conf" / "root.yaml").is_file():
            return folder
    raise AyfError(f"no project in {start} or above it: change into the project's folder")


def config_subtree(config: Mapping[str, Any], key: str) -> Any:
    """The part of ``config`` (nested dicts) at a dotted key such as ``distill.emd``.

    Raises:
        AyfError: there is no such key; names the nearest.
    """
    return settings.subtree(config, key)
