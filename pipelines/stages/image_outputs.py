"""Images in the forms that other tools read: a folder of PNG, an `.npz` as ADM's evaluation takes it, a tar of shards.

A worker writes a shard of images; joined in the order of their numbers they become the output. A shard that is there is
whole, for it is written beside its place and renamed.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from ayf_core.errors import AyfError

Images = UInt8[np.ndarray, "n H W C"]
Labels = Int64[np.ndarray, " n"]

_LABELS = "labels.npy"


class ImageOutput(ABC):
    """One form. Its shards are folders with the images in that form, and their labels where there are any.

    Attributes:
        words: what it is.
        copies: how many times the images lie on the disk while they are joined.
    """

    words: str
    copies: int

    def write_shard(self, shard: Path, first: int, images: Images, labels: Labels | None) -> None:
        """Write images whose numbers begin with `first`."""
        beside = shard.with_name(f".{shard.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        self._write(beside, first, images, labels)
        if labels is not None:
            np.save(beside / _LABELS, labels)
        os.replace(beside, shard)

    def join(self, shards: Sequence[Path], out: Path) -> None:
        """Make the output of all shards; what is at `out` in the end is whole."""
        beside = shards[0].parent / f"joined{out.suffix}"
        self._join(shards, beside)
        os.replace(beside, out)

    @abstractmethod
    def _write(self, folder: Path, first: int, images: Images, labels: Labels | None) -> None: ...

    @abstractmethod
    def _join(self, shards: Sequence[Path], beside: Path) -> None: ...


class PngFolder(ImageOutput):
    """`00000000.png` and on; with labels a `metadata.csv` beside them, as the hub's image folders have it."""

    words = "PNG files"
    copies = 1

    def _write(self, folder: Path, first: int, images: Images, labels: Labels | None) -> None:
        for number, image in enumerate(images, first):
            (folder / _name(number, ".png")).write_bytes(_png(image))

    def _join(self, shards: Sequence[Path], beside: Path) -> None:
        beside.mkdir(exist_ok=True)
        for shard in shards:
            for file in shard.glob("*.png"):  # of a join that was interrupted some are there already
                os.replace(file, beside / file.name)
        labels = _all_labels(shards)
        if labels is not None:
            with (beside / "metadata.csv").open("w", newline="") as table:
                rows = csv.writer(table)
                rows.writerow(["file_name", "label"])
                rows.writerows([_name(number, ".png"), int(label)] for number, label in enumerate(labels))


class NpzFile(ImageOutput):
    """`arr_0`: uint8 [N, H, W, 3] (points float32 [N, 2]), `arr_1`: the labels, if any."""

    words = "one .npz"
    copies = 2

    def _write(self, folder: Path, first: int, images: Images, labels: Labels | None) -> None:
        if images.ndim == 4 and images.shape[-1] == 1:
            images = images.repeat(3, axis=-1)  # evaluations know colour only
        np.save(folder / "images.npy", images)

    def _join(self, shards: Sequence[Path], beside: Path) -> None:
        parts = [np.load(shard / "images.npy", mmap_mode="r") for shard in shards]
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(_entry("arr_0.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_2_0(file, header)
                for part in parts:
                    file.write(np.ascontiguousarray(part).data)
            labels = _all_labels(shards)
            if labels is not None:
                content = io.BytesIO()
                np.save(content, labels)
                archive.writestr(_entry("arr_1.npy"), content.getvalue())


class TarFile(ImageOutput):
    """`00000000.png` and, with labels, `00000000.cls` after it, as WebDataset reads them."""

    words = "one tar"
    copies = 2

    def _write(self, folder: Path, first: int, images: Images, labels: Labels | None) -> None:
        with tarfile.open(folder / "images.tar", "w") as archive:
            for at, image in enumerate(images):
                _add(archive, _name(first + at, ".png"), _png(image))
                if labels is not None:
                    _add(archive, _name(first + at, ".cls"), str(int(labels[at])).encode())

    def _join(self, shards: Sequence[Path], beside: Path) -> None:
        with tarfile.open(beside, "w") as archive:
            for shard in shards:
                with tarfile.open(shard / "images.tar") as part:
                    for member in part:
                        archive.addfile(member, part.extractfile(member))


def output_for(out: Path) -> ImageOutput:
    """The form that a name asks for: `.npz`, `.tar`, and a folder of any other name without an ending.

    Raises:
        AyfError: an ending that says something else.
    """
    forms: dict[str, ImageOutput] = {".npz": NpzFile(), ".tar": TarFile(), "": PngFolder()}
    suffix = out.suffix.lower()
    if suffix not in forms:
        raise AyfError(
            f"{out}: images are written to a folder, one .npz or one .tar, not to '{out.suffix}': name a folder "
            "without an ending, or a file with one of these"
        )
    return forms[suffix]


def _name(number: int, suffix: str) -> str:
    return f"{number:08d}{suffix}"


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "PNG")
    return content.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)  # its time is 0: the same images give the same bytes
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def _all_labels(shards: Sequence[Path]) -> Labels | None:
    files = [shard / _LABELS for shard in shards]
    return np.concatenate([np.load(file) for file in files]) if files[0].exists() else None
