"""Data sets as tensors: scikit-learn's digits, a 2-D checkerboard, and a folder of one's own images.

`load_dataset` returns a training and a test split, each with every class in it. Everything is held in memory
as float32, which suits data of up to some hundred thousand small images.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ayf_core.errors import AyfError, require

DIGITS_SIDE = 8
"""Pixels on a side of scikit-learn's digits."""

CHECKERBOARD_SCALE = math.sqrt(12) / 8
"""What points in [-4, 4]^2 are multiplied by: each coordinate then has a standard deviation of exactly 1."""

CHECKERBOARD_HALF_WIDTH = 4 * CHECKERBOARD_SCALE
"""Half the side of the scaled board, sqrt(3)."""

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What a file may be, whatever it is called: some of Pillow's other readers start programs (PostScript)."""

MOST_PIXELS = 80_000_000
"""Of an image before it is resized: a few bytes may say that they are a picture of many gigabytes."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Split:
    """Examples x [N, *D] float32 (images [N, C, H, W] in [-1, 1], points [N, 2]) and labels [N] int64."""

    x: Float[Tensor, " N *D"]
    labels: Int64[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """A named data set. The two splits share no example, and each holds every class."""

    name: str
    kind: Literal["images", "points"]
    train: Split
    test: Split
    num_classes: int


def load_dataset(
    name: str,
    *,
    test_fraction: float,
    seed: int,
    folder: str | Path | None = None,
    image_size: int | None = None,
    size: int | None = None,
) -> DataSet:
    """Load a data set and split it; the same arguments give the same tensors.

    Args:
        name: `digits`, `checkerboard` or `folder`.
        test_fraction: the share of each class that goes to the test split, in (0, 1); at least one example of
            each class goes to either side.
        seed: of the split, and of the points that are drawn.
        folder: where the images of `folder` lie: one sub-folder a class, or images alone for a single class.
        image_size: the side in pixels that images of `folder` are cropped and resized to.
        size: how many points `checkerboard` draws.

    Raises:
        AyfError: for an unknown name, a setting missing or out of range, a folder that is missing or empty, a
            file that is not an image, NaN or infinity in the data, fewer than two examples in a class.
    """
    if name not in _LOADERS:
        near = difflib.get_close_matches(str(name), _LOADERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}" if near else "choose another"
        raise AyfError(f"unknown data set {name!r}: {hint} (there are {', '.join(_LOADERS)})")
    if not 0.0 < test_fraction < 1.0:
        raise AyfError(f"test_fraction is {test_fraction}: choose a value between 0 and 1, such as 0.2")
    generator = torch.Generator().manual_seed(seed)
    x, labels, num_classes = _LOADERS[name](folder=folder, image_size=image_size, size=size, generator=generator)
    _check_finite(x, name)
    train, test = stratified_split(labels, test_fraction, generator)
    return DataSet(
        name=name,
        kind="points" if x.ndim == 2 else "images",
        train=Split(x[train], labels[train]),
        test=Split(x[test], labels[test]),
        num_classes=num_classes,
    )


def stratified_split(
    labels: Int64[Tensor, " N"], test_fraction: float, generator: torch.Generator
) -> tuple[Int64[Tensor, " N_train"], Int64[Tensor, " N_test"]]:
    """Indices of a training and a test split, ascending, each class divided by `test_fraction`.

    Raises:
        AyfError: a class has fewer than two examples.
    """
    train, test = [], []
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        if len(members) < 2:
            raise AyfError(
                f"class {label} has {len(members)} example: at least 2 are needed, one to train on and one "
                "to test with; add examples or remove the class"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        test.append(members[:held_out])
        train.append(members[held_out:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def sample_checkerboard(n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 2"]:
    """Draw n points of the 4 x 4 checkerboard, float32.

    The law: cut [-4, 4]^2 into 4 x 4 squares of side 2, numbered (i, j) from the lower left; the density is
    uniform, 1 / 32, on the eight squares where i + j is odd, and 0 elsewhere. The points are then multiplied
    by `CHECKERBOARD_SCALE`, so each coordinate is uniform on [-sqrt(3), sqrt(3)]: mean 0, standard deviation
    1.
    """
    column = torch.randint(0, 4, (n,), generator=generator)
    half = torch.randint(0, 2, (n,), generator=generator)
    row = 2 * half + (column + 1) % 2  # of the two squares in the column where column + row is odd
    corner = torch.stack([column, row], dim=1).double()
    inside = torch.rand((n, 2), generator=generator, dtype=torch.float64)
    return ((2.0 * (corner + inside) - 4.0) * CHECKERBOARD_SCALE).float()


def _load_digits(*, folder: Any, image_size: int | None, size: int | None, generator: Any) -> Loaded:
    _refuse("digits", folder=folder, size=size)
    if image_size not in (None, DIGITS_SIDE):
        raise AyfError(f"image_size is {image_size}, but digits are {DIGITS_SIDE}x{DIGITS_SIDE}: leave it out")
    bundled = require("sklearn.datasets", extra="platform", needed_for="the data set digits").load_digits()
    pixels = torch.from_numpy(bundled.images).float()[:, None]  # 0 ... 16
    return pixels / 8.0 - 1.0, torch.from_numpy(bundled.target.astype(np.int64)), 10


def _load_checkerboard(*, folder: Any, image_size: Any, size: int | None, generator: torch.Generator) -> Loaded:
    _refuse("checkerboard", folder=folder, image_size=image_size)
    if size is None or size < 2:
        raise AyfError(f"size is {size}: say how many points the checkerboard draws, at least 2")
    return sample_checkerboard(size, generator), torch.zeros(size, dtype=torch.int64), 1


def _load_folder(*, folder: str | Path | None, image_size: int | None, size: Any, generator: Any) -> Loaded:
    _refuse("folder", size=size)
    if folder is None:
        raise AyfError("the data set folder needs a folder: name the directory that holds the images")
    if image_size is None or image_size < 1:
        raise AyfError(f"image_size is {image_size}: say the side in pixels that images are resized to")
    root = Path(folder)
    if not root.is_dir():
        raise AyfError(f"no image folder at {root}: check the path (it is relative to where the command runs)")
    files, labels, num_classes = _list_images(root)
    if len(files) < 2:
        raise AyfError(f"{root} holds one image ({files[0].name}): a data set needs at least 2 in each class")
    pixels = [_read_image(file, image_size) for file in files]
    if any(array.shape[-1] == 3 for array in pixels):  # one colour image makes the whole set RGB
        pixels = [np.broadcast_to(array, (*array.shape[:2], 3)) for array in pixels]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return x / 127.5 - 1.0, torch.tensor(labels, dtype=torch.int64), num_classes


def _list_images(root: Path) -> tuple[list[Path], list[int], int]:
    """Image files in sorted order, the class index of each, and the number of classes."""

    def images_in(place: Path) -> list[Path]:
        return sorted(
            file
            for file in place.iterdir()
            if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        )

    loose = images_in(root)
    classes = sorted(place for place in root.iterdir() if place.is_dir() and not place.name.startswith("."))
    if loose and classes:
        raise AyfError(
            f"{root} holds both images ({loose[0].name}, ...) and sub-folders ({classes[0].name}, ...): "
            "put every image into the sub-folder of its class, or all of them into one folder"
        )
    places = classes or [root]
    files, labels = [], []
    for label, place in enumerate(places):
        found = images_in(place)
        if not found:
            raise AyfError(f"{place} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): add some or remove it")
        if classes and len(found) < 2:
            raise AyfError(f"class folder {place} holds one image: add at least one more, or remove the folder")
        files += found
        labels += [label] * len(found)
    return files, labels, len(places)


def _read_image(file: Path, side: int) -> np.ndarray:
    """One image, cropped to the central square and resized: float32 [side, side, 1 or 3] in [0, 255]."""
    image_module = require("PIL.Image", extra="platform", needed_for="the data set folder")
    image_ops = require("PIL.ImageOps", extra="platform", needed_for="the data set folder")
    try:
        with image_module.open(file, formats=IMAGE_FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels, at most {MOST_PIXELS:,} are read")
            image = image_ops.exif_transpose(opened)  # a phone's photograph may be stored lying on its side
            image.load()
    except Exception as error:  # Pillow's readers raise all kinds of errors on foreign bytes
        raise AyfError(f"cannot read the image {file} ({error}): replace or remove it") from error

    if image.mode == "F":
        raise AyfError(f"{file} holds floating-point pixels, whose range is unknown: save it as 8-bit PNG")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would clip at 255
        image = image_module.fromarray((np.asarray(image, dtype=np.float64) / 257.0).round().astype(np.uint8))
    elif "A" in image.mode or "transparency" in image.info:
        grey = image.mode.startswith("L")
        image = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, "white")
        image = image_module.alpha_composite(white, image).convert("L" if grey else "RGB")
    else:
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")

    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge))
    resized = square.resize((side, side), image_module.Resampling.LANCZOS)
    pixels = np.asarray(resized, dtype=np.float32)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _refuse(name: str, **settings: object) -> None:
    """An option without effect says so."""
    for setting, value in settings.items():
        if value is not None:
            raise AyfError(f"{setting} has no meaning for the data set {name}: set it to null")


def _check_finite(x: Tensor, name: str) -> None:
    bad = ~torch.isfinite(x.flatten(1)).all(dim=1)
    if bad.any():
        first = int(torch.nonzero(bad)[0])
        raise AyfError(
            f"the data set {name} holds NaN or infinity in {int(bad.sum())} of {len(x)} examples, first in "
            f"number {first}: mend or remove them"
        )


Loaded = tuple[Tensor, Tensor, int]  # x, labels, num_classes
_LOADERS: dict[str, Callable[..., Loaded]] = {
    "digits": _load_digits,
    "checkerboard": _load_checkerboard,
    "folder": _load_folder,
}
