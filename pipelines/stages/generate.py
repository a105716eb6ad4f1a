"""Images from a model by the thousand, on all workers of the runtime: what a FID is measured on.

Image i of a seed is drawn from noise and a label of its own, so neither the workers nor an interruption change it. A
shard is the unit of work, as it is of `encode_latents`: those that an interrupted attempt finished are not drawn again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.data.latents import LatentDataset
from ayf_core.errors import AyfError, Preempted
from ayf_core.files import read_json, write_whole
from ayf_core.sampling.generator import Generator
from ayf_core.sampling.numbered import NumberedNoise, balanced_labels, drawn_labels
from ayf_core.training.context import TrainingContext
from ayf_core.velocity import Autoguidance, NetworkVelocity
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages.image_outputs import ImageOutput, NpzFile, output_for
from pipelines.stages.pictures import check_labels, class_count, eight_bits
from pipelines.stages.sampling import arguments, local_model, sampling_settings

SHARD_SIZE = 256
"""So many images, for each worker, are drawn again after an interruption."""
BATCH = 128
BALANCED, AS_DATA = "balanced", "data"


@dataclass(frozen=True)
class Labels:
    """Which label each image has.

    Attributes:
        kind: "none", "choices" (in turn), "counts" (drawn in proportion), "given" (one for each image).
        values: the choices, how often each class occurs, or the labels.
    """

    kind: str = "none"
    values: tuple[int, ...] = ()

    def of(self, seed: int, first: int, last: int) -> Int64[Tensor, " n"] | None:
        """Labels of images [first, last)."""
        if self.kind == "choices":
            return balanced_labels(first, last, self.values)
        if self.kind == "counts":
            return drawn_labels(seed, first, last, torch.tensor(self.values))
        return torch.tensor(self.values[first:last]) if self.kind == "given" else None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be drawn; plain data that travels to the workers.

    Attributes:
        weak_model: of autoguidance, for a velocity network that a guidance scale is asked of.
        settings: of a flow map, those of `SamplingSettings`; of a velocity network its guidance scale.
        weights: checksums of the models' weights.
    """

    model: Path
    weak_model: Path | None
    ema_std: float | None
    evaluations: int
    settings: Mapping[str, Any]
    labels: Labels
    seed: int
    count: int
    batch_size: int
    shard_size: int
    out: Path
    weights: tuple[str, ...]

    def loaded(self, device: torch.device | str) -> Generator:
        """The model, guided where it is to be."""
        model = Generator.load(self.model, device, self.ema_std)
        if self.weak_model is None:
            return model
        weak = Generator.load(self.weak_model, device)
        return model.guided_by(Autoguidance(NetworkVelocity(model.network), NetworkVelocity(weak.network)))

    @property
    def shards(self) -> range:
        """The first image of each shard."""
        return range(0, self.count, self.shard_size)

    @property
    def digest(self) -> str:
        """Of all that decides the images, but not of where the models lie."""
        told = dataclasses.asdict(self) | {"model": None, "weak_model": None, "out": None}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def generate(
    model: str,
    root: Path,
    runtime: RuntimeConfig,
    out: Path,
    *,
    count: int,
    evaluations: int,
    labels: str | None = None,
    seed: int = 0,
    weak_model: str | None = None,
    ema_std: float | None = None,
    batch_size: int = BATCH,
    untuned: bool = False,
    guidance_scale: float | None = None,
    gamma: float | None = None,
    time_grid: str | None = None,
) -> str:
    """Draw `count` images into `out`: a folder, one `.npz` or one `.tar`. Called again, it goes on.

    Args:
        labels: "balanced", "data" (in proportion to the project's latents), some labels (`3,7`, in turn), or a file
            with a label for each image; None is balanced where there are classes.

    Returns:
        How the images were drawn, in words.

    Raises:
        AyfError: whatever cannot work, before anything is drawn; a number in an image that is none.
        Preempted: it was asked to stop.
    """
    from pipelines.execution.ray_train import run_training

    form = output_for(out)
    if out.exists():
        raise AyfError(f"{out} is there already: remove it, or name another place")
    place = local_model(model, root).absolute()
    weak = None if weak_model is None else local_model(weak_model, root).absolute()
    loaded = Generator.load(place, ema_std=ema_std)
    cards = [loaded.card]
    if weak is not None:
        cards.append(Generator.load(weak).card)
    if loaded.sampler.takes_settings and weak is not None:
        raise AyfError("a student's guidance was distilled into it: leave --weak-model out")
    if not loaded.sampler.takes_settings and (weak is None) != (guidance_scale is None):
        raise AyfError("a velocity network is guided by a weak one: name both --guidance-scale and --weak-model")
    settings, words = sampling_settings(loaded, evaluations, untuned, guidance_scale, gamma, time_grid)
    request = Request(
        model=place,
        weak_model=weak,
        ema_std=ema_std,
        evaluations=evaluations,
        settings=settings,
        labels=_labels(labels, loaded, count, root),
        seed=seed,
        count=count,
        batch_size=batch_size,
        shard_size=SHARD_SIZE,
        out=out.absolute(),
        weights=tuple(str(card["sha256"]) for card in cards),
    )
    work = request.out.with_name(f"{out.name}.partial")
    _check(request, loaded, form, work)
    run_training(
        draw,
        {"request": request},
        folder=work / "run",
        name="generate",
        runtime=runtime,
        on_log=lambda records: None,
        unit="images",
    )
    form.join([_shard(work, number) for number in range(len(request.shards))], request.out)
    shutil.rmtree(work)
    return f"{form.words}, {words}"


def draw(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    """This worker's shards. Every worker takes the same number of turns, so that a stop finds them together."""
    request: Request = settings["request"]
    form, model, work = output_for(request.out), request.loaded(context.device), context.folder.parent
    for done in range(0, len(request.shards), context.world_size):
        if context.stop_asked():
            raise Preempted(done)
        number = done + context.rank
        if number < len(request.shards) and not _shard(work, number).exists():
            first = request.shards[number]
            last = min(first + request.shard_size, request.count)
            batches = range(first, last, request.batch_size)
            images = [drawn(model, request, at, min(at + request.batch_size, last)) for at in batches]
            labels = request.labels.of(request.seed, first, last)
            known = None if labels is None else labels.numpy()
            form.write_shard(_shard(work, number), first, np.concatenate(images), known)
        finished = min((done + context.world_size) * request.shard_size, request.count)
        context.log(finished, request.count, {"images": finished})
    return {"images": request.count}


def drawn(model: Generator, request: Request, first: int, last: int) -> np.ndarray:
    """Images [first, last) as uint8 [n, H, W, C]; points as float32 [n, D].

    Raises:
        AyfError: NaN or infinity in one of them.
    """
    device = next(model.network.parameters()).device
    noise = NumberedNoise(request.seed, first, last)
    labels = request.labels.of(request.seed, first, last)
    condition = Condition() if labels is None else Condition(labels=labels.to(device))
    start = noise(torch.empty(last - first, *model.spec.shape, device=device))
    x = model.sample(
        start,
        request.evaluations,
        condition,
        generator=noise,
        **arguments(model, request.settings, request.evaluations),
    ).x
    bad = ~torch.isfinite(x.flatten(1)).all(dim=1)
    if bad.any():
        number = first + int(torch.nonzero(bad)[0])
        raise AyfError(f"image {number} holds NaN or infinity: look at the model, or at another guidance scale")
    if x.ndim == 2:
        return x.float().cpu().numpy()
    return eight_bits(x).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _shard(work: Path, number: int) -> Path:
    return work / f"shard_{number:05d}"


def _labels(asked: str | None, model: Generator, count: int, root: Path) -> Labels:
    classes = class_count(model)
    if not classes:
        if asked is not None:
            raise AyfError("the model has no classes: leave --labels out")
        return Labels()
    if asked in (None, BALANCED):
        return Labels("choices", tuple(range(classes)))
    if asked == AS_DATA:
        latents = LatentDataset(root / "data/latents/train")
        if latents.num_classes != classes:
            raise AyfError(f"the model has {classes} classes and {latents.folder} has {latents.num_classes}")
        _, _, labels = latents.mean_std_labels(np.arange(len(latents)))
        return Labels("counts", tuple(torch.bincount(labels, minlength=classes).tolist()))
    assert asked is not None
    file = Path(asked)
    found = _read_labels(asked)
    check_labels(found, classes)
    if not file.is_file():
        return Labels("choices", tuple(found))
    if len(found) != count:
        raise AyfError(f"{file} holds {len(found):,} labels for {count:,} images: one for each is needed")
    return Labels("given", tuple(found))


def _read_labels(asked: str) -> list[int]:
    file = Path(asked)
    try:
        return [int(word) for word in (file.read_text().split() if file.is_file() else asked.split(","))]
    except ValueError:  # no numbers, or no text
        raise AyfError(
            f"--labels {asked}: give {BALANCED}, {AS_DATA}, whole numbers with commas between them (3,7), or a file "
            "with a label for each image on a line of its own"
        ) from None


def _check(request: Request, model: Generator, form: ImageOutput, work: Path) -> None:
    """Whether the output can hold what the model makes, there is room, and an earlier attempt asked for the same."""
    if model.makes_points and not isinstance(form, NpzFile):
        raise AyfError(f"{request.out.name}: the model makes points, not images: name a file that ends in .npz")
    one = model.codec.decode(model.space.denormalise(torch.zeros(1, *model.spec.shape)))
    colour = max(3, one.shape[1]) / one.shape[1]  # grey may be stored as colour
    needed = form.copies * request.count * one.numel() * (one.element_size() if model.makes_points else colour)
    work.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work.parent).free
    if needed > free:
        raise AyfError(
            f"{request.count:,} images take up to {needed / 2**30:.1f} GiB and {work.parent} has "
            f"{free / 2**30:.1f} GiB free: name a place with more room, or fewer images"
        )
    note = work / "request.json"
    try:
        begun = read_json(note).get("digest")
    except FileNotFoundError:
        begun = request.digest
    except (OSError, ValueError, AttributeError):
        begun = None
    if begun != request.digest:
        raise AyfError(f"{work} was begun with other settings or another model: remove it, or name another place")
    work.mkdir(exist_ok=True)
    write_whole(note, json.dumps({"digest": request.digest}))
