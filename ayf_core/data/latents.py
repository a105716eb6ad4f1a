"""Latent shards: what a codec made of a data set, on disk, checked and memory-mapped.

A folder of latents holds `manifest.json` and shards `shard_00000.safetensors`, each with three tensors: mean
and std [n, *shape] float32 (the Gaussian the codec gives for each example) and label [n] int64. A training
step draws z = mean + std * noise and normalises it with the manifest's shift and scale. The same latents give
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor

from ayf_core.errors import AyfError

FORMAT = 1
MANIFEST = "manifest.json"
KEEP_IN_MEMORY_BYTES = 256 * 2**20
"""Latents up to this size are read into memory once; larger ones stay on disk, memory-mapped."""

REMEDY = "`dvc repro --force encode_latents` encodes them again"
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}

Batch = tuple[Float[Tensor, " B *D"], Float[Tensor, " B *D"], Int64[Tensor, " B"]]  # mean, std, labels


@dataclass(frozen=True)
class LatentSpace:
    """The per-channel shift [C] and scale [C] that give latents zero mean and unit standard deviation."""

    shift: Float[Tensor, " C"]
    scale: Float[Tensor, " C"]

    def normalise(self, z: Float[Tensor, "B C *D"]) -> Float[Tensor, "B C *D"]:
        """(z - shift) / scale, in the type and on the device of z."""
        shift, scale = self._like(z)
        return (z - shift) / scale

    def denormalise(self, z: Float[Tensor, "B C *D"]) -> Float[Tensor, "B C *D"]:
        """z * scale + shift: what a codec decodes."""
        shift, scale = self._like(z)
        return z * scale + shift

    def _like(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.ndim < 2 or z.shape[1] != len(self.shift):
            raise ValueError(f"expected [B, {len(self.shift)}, ...] latents, got {tuple(z.shape)}")
        shape = (1, -1) + (1,) * (z.ndim - 2)
        return self.shift.to(z).reshape(shape), self.scale.to(z).reshape(shape)


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

    moments = _Moments(shape)
    shards: list[dict[str, Any]] = []
    for number, (mean, std, labels) in enumerate(_regroup(batches, shard_size, shape)):
        first = number * shard_size
        _check_batch(mean, std, labels, num_classes, first)
        moments.add(mean, std)
        file = place / f"shard_{number:05d}.safetensors"
        beside = file.with_suffix(".safetensors.part")
        save_file({"mean": mean, "std": std, "label": labels}, beside)
        shards.append({"file": file.name, "count": len(labels), "sha256": _sha256(beside)})
        os.replace(beside, file)
    if not shards:
        raise AyfError(f"no latents to write to {place}: the data set is empty")

    shift, scale = moments.shift_and_scale()
    manifest = {
        "format": FORMAT,
        "count": moments.examples,
        "shape": list(shape),
        "num_classes": num_classes,
        "shift": shift,
        "scale": scale,
        "codec": codec_fingerprint,
        "shards": shards,
    }
    beside = place / f"{MANIFEST}.part"
    beside.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(beside, place / MANIFEST)
    return manifest


class LatentDataset:
    """Latents read by index from a folder that `write_latents` made.

    Args:
        folder: the folder of latents.
        keep_in_memory_bytes: up to this size everything is read once, at the first use.

    Raises:
        AyfError: the folder or a shard is missing, truncated or foreign. Only sizes are looked at here;
            `verify` looks at every byte.
    """

    def __init__(self, folder: str | Path, *, keep_in_memory_bytes: int = KEEP_IN_MEMORY_BYTES) -> None:
        self.folder = Path(folder)
        self._keep_in_memory_bytes = keep_in_memory_bytes
        self.manifest = _read_manifest(self.folder)
        self.shape: tuple[int, ...] = tuple(self.manifest["shape"])
        self.num_classes: int = self.manifest["num_classes"]
        self.codec_fingerprint: str = self.manifest["codec"]
        self.space = LatentSpace(torch.tensor(self.manifest["shift"]), torch.tensor(self.manifest["scale"]))
        counts = [shard["count"] for shard in self.manifest["shards"]]
        self._starts = np.concatenate([[0], np.cumsum(counts)])  # the index of each shard's first example
        for shard in self.manifest["shards"]:
            _map_shard(self.folder / shard["file"], shard["count"], self.shape)
        self._tensors: list[dict[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        return int(self.manifest["count"])

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker opens the files anew; pickling a memory map would copy the data.
        return _reopen, (self.folder, self._keep_in_memory_bytes)

    def mean_std_labels(
        self, indices: Int64[Tensor, " B"] | np.ndarray | Sequence[int]
    ) -> tuple[Float[Tensor, " B *D"], Float[Tensor, " B *D"], Int64[Tensor, " B"]]:
        """The examples at `indices`, in that order; an index may be repeated.

        Raises:
            IndexError: an index is outside [0, len).
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"indices in [{wanted.min()}, {wanted.max()}] of {len(self)} latents")
        parts = self._open()
        if len(parts) == 1:
            picked = [parts[0][name][wanted] for name in ("mean", "std", "label")]
        else:
            picked = [
                np.empty((len(wanted), *self.shape), np.float32),
                np.empty((len(wanted), *self.shape), np.float32),
                np.empty(len(wanted), np.int64),
            ]
            shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
            for number in np.unique(shard_of):
                here = np.nonzero(shard_of == number)[0]
                rows = wanted[here] - self._starts[number]
                for target, name in zip(picked, ("mean", "std", "label"), strict=True):
                    target[here] = parts[number][name][rows]
        mean, std, labels = (torch.from_numpy(np.asarray(array)) for array in picked)
        return mean, std, labels

    def verify(self) -> None:
        """Recompute every checksum.

        Raises:
            AyfError: naming the first shard whose bytes are not those that were written.
        """
        for shard in self.manifest["shards"]:
            file = self.folder / shard["file"]
            if _sha256(file) != shard["sha256"]:
                raise AyfError(f"latent shard {file} is damaged (its checksum differs): {REMEDY}")

    def _open(self) -> list[dict[str, np.ndarray]]:
        if self._tensors is None:
            parts = [_map_shard(self.folder / s["file"], s["count"], self.shape) for s in self.manifest["shards"]]
            size = sum(array.nbytes for part in parts for array in part.values())
            if size <= self._keep_in_memory_bytes:
                names = ("mean", "std", "label")
                parts = [{name: np.concatenate([part[name] for part in parts]) for name in names}]
            self._tensors = parts
        return self._tensors


def _reopen(folder: Path, keep_in_memory_bytes: int) -> LatentDataset:
    return LatentDataset(folder, keep_in_memory_bytes=keep_in_memory_bytes)


class _Moments:
    """Per-channel mean and variance of z = mean + std * noise, summed in float64.

    E[z] = E[mean]; Var[z] = E[mean^2 + std^2] - E[z]^2: exact, no noise is drawn. Sums start from the first
    shard's mean, so that a large offset costs no digits.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.examples = 0
        self._per_channel = math.prod(shape[1:])
        self._origin: Tensor | None = None
        self._sum = torch.zeros(shape[0], dtype=torch.float64)
        self._sum_of_squares = torch.zeros(shape[0], dtype=torch.float64)

    def add(self, mean: Tensor, std: Tensor) -> None:
        mean = mean.double().reshape(len(mean), len(self._sum), -1)
        std = std.double().reshape(mean.shape)
        if self._origin is None:
            self._origin = mean.mean(dim=(0, 2))
        centred = mean - self._origin[:, None]
        self.examples += len(mean)
        self._sum += centred.sum(dim=(0, 2))
        self._sum_of_squares += (centred.square() + std.square()).sum(dim=(0, 2))

    def shift_and_scale(self) -> tuple[list[float], list[float]]:
        assert self._origin is not None
        count = self.examples * self._per_channel
        centre = self._sum / count
        variance = (self._sum_of_squares / count - centre.square()).clamp_min(0.0)
        scale = torch.where(variance > 1e-12, variance.sqrt(), 1.0)  # a constant channel is left as it is
        return (self._origin + centre).tolist(), scale.tolist()


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
            mean, std, labels = _join(held)
            yield mean[:size].contiguous(), std[:size].contiguous(), labels[:size].contiguous()
            held = [(mean[size:], std[size:], labels[size:])]
    if held and sum(len(part[2]) for part in held):
        yield _join(held)


def _join(parts: list[Batch]) -> Batch:
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


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise AyfError(
            f"no latents at {folder} ({MANIFEST} is missing): `dvc repro encode_latents` makes them"
        ) from None
    except (OSError, ValueError) as error:
        raise AyfError(f"cannot read {file} ({error}): {REMEDY}") from error
    keys = {"format", "count", "shape", "num_classes", "shift", "scale", "codec", "shards"}
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise AyfError(f"{file} is not a manifest of latents: {REMEDY}")
    if manifest["format"] != FORMAT:
        raise AyfError(f"{file} has format {manifest['format']}, this version reads {FORMAT}: {REMEDY}")
    if sum(shard["count"] for shard in manifest["shards"]) != manifest["count"]:
        raise AyfError(f"{file} contradicts itself (the counts of its shards do not add up): {REMEDY}")
    return manifest


def _map_shard(file: Path, count: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as memory-mapped arrays.

    Read here and not through `safetensors.safe_open`, whose slices cannot gather rows by an index array. The
    format: 8 bytes with the length of a JSON header, the header, the tensors' bytes.
    """
    expected: dict[str, tuple[str, list[int]]] = {
        "mean": ("F32", [count, *shape]),
        "std": ("F32", [count, *shape]),
        "label": ("I64", [count]),
    }
    try:
        raw = np.memmap(file, dtype=np.uint8, mode="r")
        start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8:start].tobytes())
        arrays: dict[str, np.ndarray] = {}
        for name, (kind, tensor_shape) in expected.items():
            entry = header[name]
            if (entry["dtype"], entry["shape"]) != (kind, tensor_shape):
                raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}, expected {kind} {tensor_shape}")
            begin, end = entry["data_offsets"]
            if start + end > len(raw):
                raise ValueError(f"{len(raw)} bytes, expected {start + end}")
            arrays[name] = raw[start + begin : start + end].view(_TYPES[kind]).reshape(tensor_shape)
    except FileNotFoundError:
        raise AyfError(f"latent shard {file} is missing: {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AyfError(f"latent shard {file} is truncated or foreign ({error}): {REMEDY}") from error
    return arrays


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise AyfError(f"cannot read {file} ({error}): {REMEDY}") from error
