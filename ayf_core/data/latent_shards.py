"""Writes latent shards, each for itself, and the manifest that makes them a data set.

A shard's note holds what the manifest needs of it (count, checksum, moments), so shards can be written in any order, by
any number of processes; merged in the order of their numbers, their notes give the same manifest.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ayf_core.data.latents import FORMAT, MANIFEST, Batch, sha256
from ayf_core.errors import AyfError
from ayf_core.files import write_whole


@dataclass(frozen=True)
class ShardNote:
    """What the manifest needs of one shard.

    Attributes:
        origin: per-channel mean of the shard; the two sums below start from it, so that a large offset costs no digits.
        total: per-channel sum of mean - origin, in float64.
        squares: per-channel sum of (mean - origin)^2 + std^2.
    """

    file: str
    count: int
    sha256: str
    origin: list[float]
    total: list[float]
    squares: list[float]

    def save(self, path: Path) -> None:
        """Write it beside, then rename: a note that is there is whole, and so is its shard."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> ShardNote:
        """The note that `save` wrote."""
        return cls(**json.loads(path.read_text()))


def write_latents(
    folder: str | Path,
    batches: Iterable[Batch],
    latent_shape: Sequence[int],
    num_classes: int,
    codec_fingerprint: str,
    shard_size: int,
) -> dict[str, Any]:
    """Write shards of `shard_size` examples and, last of all, the manifest; return the manifest.

    How the examples come in batches does not change the bytes. Each file is written beside its place and
    renamed, and a folder without a manifest counts as unfinished, so a writer killed at any instant leaves
    nothing that looks whole.

    Raises:
        AyfError: for NaN or infinity in the latents, a label outside the classes, or no example at all.
        ValueError: for shapes that do not fit `latent_shape`.
    """
    if shard_size < 1:
        raise AyfError(f"shard_size is {shard_size}: choose how many examples a shard holds, at least 1")
    place, shape = Path(folder), tuple(latent_shape)
    place.mkdir(parents=True, exist_ok=True)
    (place / MANIFEST).unlink(missing_ok=True)
    for stale in place.glob("shard_*.safetensors*"):
        stale.unlink()
    notes = [
        write_shard(place, number, batch, num_classes, number * shard_size)
        for number, batch in enumerate(_regroup(batches, shard_size, shape))
    ]
    return write_manifest(place, notes, shape, num_classes, codec_fingerprint)


def shard_name(number: int) -> str:
    """`shard_00012.safetensors`."""
    return f"shard_{number:05d}.safetensors"


def write_shard(folder: Path, number: int, batch: Batch, num_classes: int, first: int) -> ShardNote:
    """Write one shard, beside its place and then renamed.

    Args:
        batch: float32 mean and std [n, *shape], int64 labels [n], on the CPU.
        first: index of its first example in the data set, for messages.

    Raises:
        AyfError: for NaN or infinity in the latents, or a label outside the classes.
    """
    mean, std, labels = batch
    _check_batch(mean, std, labels, num_classes, first)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / shard_name(number)
    beside = file.with_suffix(".safetensors.part")
    save_file({"mean": mean, "std": std, "label": labels}, beside)
    handle = os.open(beside, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    checksum = sha256(beside)
    os.replace(beside, file)
    return ShardNote(file.name, len(labels), checksum, *_moments(mean, std))


def shard_is_whole(folder: Path, note: Path) -> bool:
    """Whether an earlier attempt wrote this shard, and its bytes are still those."""
    if not note.exists():
        return False
    known = ShardNote.load(note)
    file = folder / known.file
    return file.exists() and sha256(file) == known.sha256


def write_manifest(
    folder: Path, notes: Sequence[ShardNote], shape: Sequence[int], num_classes: int, codec_fingerprint: str
) -> dict[str, Any]:
    """Write the manifest of shards given in the order of their numbers; return it.

    Raises:
        AyfError: there are none.
    """
    if not notes:
        raise AyfError(f"no latents to write to {folder}: the data set is empty")
    shift, scale = _shift_and_scale(notes, math.prod(shape[1:]))
    manifest = {
        "format": FORMAT,
        "count": sum(note.count for note in notes),
        "shape": list(shape),
        "num_classes": num_classes,
        "shift": shift,
        "scale": scale,
        "codec": codec_fingerprint,
        "shards": [{"file": note.file, "count": note.count, "sha256": note.sha256} for note in notes],
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _moments(mean: Tensor, std: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Origin, total and squares of a `ShardNote`, of mean and std [n, C, *D]."""
    mean = mean.double().reshape(*mean.shape[:2], -1)
    std = std.double().reshape(mean.shape)
    origin = mean.mean(dim=(0, 2))
    centred = mean - origin[:, None]
    squares = (centred.square() + std.square()).sum(dim=(0, 2))
    return origin.tolist(), centred.sum(dim=(0, 2)).tolist(), squares.tolist()


def _shift_and_scale(notes: Sequence[ShardNote], per_channel: int) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation of z = mean + std * noise.

    E[z] = E[mean]; Var[z] = E[mean^2 + std^2] - E[z]^2: exact, no noise is drawn. The sums of all shards are moved to
    the origin of the first: sum (x - o)^2 = sum (x - o')^2 + 2 d sum (x - o') + n d^2 with d = o' - o.
    """
    origin = torch.tensor(notes[0].origin, dtype=torch.float64)
    total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
    for note in notes:
        n = note.count * per_channel
        own, own_squares = (torch.tensor(values, dtype=torch.float64) for values in (note.total, note.squares))
        moved = torch.tensor(note.origin, dtype=torch.float64) - origin
        total += own + n * moved
        squares += own_squares + 2 * moved * own + n * moved.square()
    count = sum(note.count for note in notes) * per_channel
    centre = total / count
    variance = (squares / count - centre.square()).clamp_min(0.0)
    scale = torch.where(variance > 1e-12, variance.sqrt(), 1.0)  # a constant channel is left as it is
    return (origin + centre).tolist(), scale.tolist()


def _regroup(batches: Iterable[Batch], size: int, shape: tuple[int, ...]) -> Iterator[Batch]:
    """The same examples in groups of `size` (the last may be smaller), float32 and int64, on the CPU."""
    held: list[Batch] = []
    for mean, std, labels in batches:
        if tuple(mean.shape[1:]) != shape or std.shape != mean.shape or labels.shape != mean.shape[:1]:
            raise ValueError(
                f"expected mean and std [B, {', '.join(map(str, shape))}] and labels [B], got "
                f"{tuple(mean.shape)}, {tuple(std.shape)} and {tuple(labels.shape)}"
            )
        held.append((mean.float().cpu(), std.float().cpu(), labels.to(torch.int64).cpu()))
        while sum(len(part[2]) for part in held) >= size:
            mean, std, labels = join(held)
            yield mean[:size].contiguous(), std[:size].contiguous(), labels[:size].contiguous()
            held = [(mean[size:], std[size:], labels[size:])]
    if held and sum(len(part[2]) for part in held):
        yield join(held)


def join(parts: Sequence[Batch]) -> Batch:
    """One batch of several."""
    mean, std, labels = (torch.cat(column).contiguous() for column in zip(*parts, strict=True))
    return mean, std, labels


def _check_batch(mean: Tensor, std: Tensor, labels: Tensor, num_classes: int, first: int) -> None:
    bad = ~(torch.isfinite(mean) & torch.isfinite(std)).flatten(1).all(dim=1)
    if bad.any():
        where = first + int(torch.nonzero(bad)[0])
        raise AyfError(f"latent {where} holds NaN or infinity: look at that example and at the codec's training")
    if (std < 0).any():
        raise ValueError("a latent has a negative standard deviation")
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        where = int(torch.nonzero(outside)[0])
        raise AyfError(
            f"example {first + where} has label {int(labels[where])}, but there are {num_classes} classes "
            "(0 is the first): mend the label or num_classes"
        )
