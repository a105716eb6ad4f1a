"""Latent shards: what a codec made of a data set, on disk, checked and memory-mapped.

A folder of latents holds `manifest.json` and shards `shard_00000.safetensors`, each with three tensors: mean and std
[n, *shape] float32 (the Gaussian the codec gives for each example) and label [n] int64. A training step draws
z = mean + std * noise and normalises it with the manifest's shift and scale. The same latents give the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ayf_core.data.verified import VerifiedFiles
from ayf_core.errors import AyfError
from ayf_core.files import inside, parse_json, read_json

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

    def to(self, device: torch.device) -> LatentSpace:
        """The same on a device: latents that are there need not wait for its numbers to come."""
        return LatentSpace(self.shift.to(device), self.scale.to(device))

    def _like(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.ndim < 2 or z.shape[1] != len(self.shift):
            raise ValueError(f"expected [B, {len(self.shift)}, ...] latents, got {tuple(z.shape)}")
        shape = (1, -1) + (1,) * (z.ndim - 2)
        return self.shift.to(z).reshape(shape), self.scale.to(z).reshape(shape)


class LatentDataset:
    """Latents read by index from a folder that `ayf_core.data.latent_shards` wrote.

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

    def verify(self, remembered: VerifiedFiles | None = None) -> None:
        """Compare every shard's checksum with the manifest's.

        Args:
            remembered: spares reading a shard that is as it was when its checksum was computed here before.

        Raises:
            AyfError: naming the first shard whose bytes are not those that were written.
        """
        for shard in self.manifest["shards"]:
            file = self.folder / shard["file"]
            if sha256(file, remembered) != shard["sha256"]:
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


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = read_json(file)
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
    try:
        _check_types(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise AyfError(f"{file} is not a manifest of latents ({error}): {REMEDY}") from None
    for shard in manifest["shards"]:
        inside(folder, shard["file"], file)
    if sum(shard["count"] for shard in manifest["shards"]) != manifest["count"]:
        raise AyfError(f"{file} contradicts itself (the counts of its shards do not add up): {REMEDY}")
    return manifest


def _check_types(manifest: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError where a manifest lacks something or has another kind of value."""
    if not manifest["shape"]:
        raise ValueError("a latent has no shape")
    shards, channels = manifest["shards"], manifest["shape"][0]
    whole = [manifest["count"], manifest["num_classes"], *manifest["shape"], *(shard["count"] for shard in shards)]
    if any(type(number) is not int or number < 0 for number in whole):
        raise ValueError("a count or size is no whole number")
    if not all(isinstance(shard["sha256"], str) for shard in shards) or not isinstance(manifest["codec"], str):
        raise ValueError("a checksum is no text")
    if any(
        len(manifest[name]) != channels or not all(map(math.isfinite, manifest[name])) for name in ("shift", "scale")
    ):
        raise ValueError("shift and scale are not a number for each channel")


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
        if start > len(raw):
            raise ValueError(f"{len(raw)} bytes, and a header of {start - 8}")
        header = parse_json(raw[8:start].tobytes())
        arrays: dict[str, np.ndarray] = {}
        for name, (kind, tensor_shape) in expected.items():
            entry = header[name]
            if (entry["dtype"], entry["shape"]) != (kind, tensor_shape):
                raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}, expected {kind} {tensor_shape}")
            begin, end = entry["data_offsets"]
            if start + end > len(raw):
                raise ValueError(f"{len(raw)} bytes, expected {start + end}")
            if begin < 0 or end - begin != math.prod(tensor_shape) * _TYPES[kind].itemsize:
                raise ValueError(f"{name} is said to lie at {begin} to {end}")
            arrays[name] = raw[start + begin : start + end].view(_TYPES[kind]).reshape(tensor_shape)
    except FileNotFoundError:
        raise AyfError(f"latent shard {file} is missing: {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AyfError(f"latent shard {file} is truncated or foreign ({error}): {REMEDY}") from error
    return arrays


def sha256(file: Path, remembered: VerifiedFiles | None = None) -> str:
    """Checksum of a shard's bytes. Raises AyfError where it cannot be read."""
    try:
        if remembered is not None:
            return remembered.sha256(file)
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise AyfError(f"cannot read {file} ({error}): {REMEDY}") from error
