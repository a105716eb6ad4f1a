"""A folder of one's own images: one sub-folder a class, or images alone for a single class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ayf_core.data.images import IMAGE_SUFFIXES, read_image
from ayf_core.data.sets.base import DataSource, Examples, Outline, stratified_split
from ayf_core.errors import AyfError
from ayf_core.registry import register
from ayf_core.settings import setting

_LOOKED_AT = 16
"""Images that an outline opens."""


@register("data set", "folder", title="Folder of images", gives=["features"])
@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Images [1 or 3, side, side]: one colour image makes the whole set RGB. Classes are in alphabetical order."""

    folder: str = setting("folder of images, one sub-folder a class")
    image_size: int = setting("side in pixels that images are cropped and resized to", at_least=2)

    @property
    def side(self) -> int:
        return self.image_size

    def reads(self) -> tuple[Path, ...]:
        return (Path(self.folder),)

    def outline(self, seed: int) -> Outline:
        """From the names of the files; whether they are in colour, from the first few."""
        files, labels, num_classes = self._files()
        colour = any(read_image(file, self.image_size).shape[-1] == 3 for file in files[:_LOOKED_AT])
        generator = torch.Generator().manual_seed(seed)
        train, test = stratified_split(torch.tensor(labels), self.test_fraction, generator)
        return Outline((3 if colour else 1, self.image_size, self.image_size), num_classes, len(train), len(test))

    def _files(self) -> tuple[list[Path], list[int], int]:
        if self.image_size < 1:
            raise AyfError(f"image_size is {self.image_size}: say the side in pixels that images are resized to")
        root = Path(self.folder)
        if not root.is_dir():
            raise AyfError(f"no image folder at {root}: check the path (it is relative to where the command runs)")
        files, labels, num_classes = list_images(root)
        if len(files) < 2:
            raise AyfError(f"{root} holds one image ({files[0].name}): a data set needs at least 2 in each class")
        return files, labels, num_classes

    def examples(self, generator: torch.Generator) -> Examples:
        files, labels, num_classes = self._files()
        pixels = [read_image(file, self.image_size) for file in files]
        if any(array.shape[-1] == 3 for array in pixels):
            pixels = [np.broadcast_to(array, (*array.shape[:2], 3)) for array in pixels]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        return Examples(x / 127.5 - 1.0, torch.tensor(labels, dtype=torch.int64), num_classes)


def list_images(root: Path) -> tuple[list[Path], list[int], int]:
    """Image files in sorted order, the class index of each, and the number of classes.

    `root` itself and single images may be links. A class folder may not: DVC, like most that watch a folder, does not
    look behind a linked sub-folder, so its images could change and nothing would be rebuilt.

    Raises:
        AyfError: images beside class folders, a class with none or one, a linked class folder, a link that leads
            nowhere.
    """
    loose, classes = _images_in(root), []
    for place in sorted(root.iterdir()):
        if place.name.startswith(".") or not place.is_dir():
            continue
        if place.is_symlink():
            raise AyfError(
                f"class folder {place} is a link, behind which DVC sees no change: put a folder there, of links to the "
                f"images if they are to stay where they are (`cp -rs {place.resolve()} FOLDER`)"
            )
        classes.append(place)
    if loose and classes:
        raise AyfError(
            f"{root} holds both images ({loose[0].name}, ...) and sub-folders ({classes[0].name}, ...): "
            "put every image into the sub-folder of its class, or all of them into one folder"
        )
    places = classes or [root]
    files, labels = [], []
    for label, place in enumerate(places):
        found = _images_in(place)
        if not found:
            raise AyfError(f"{place} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): add some or remove it")
        if classes and len(found) < 2:
            raise AyfError(f"class folder {place} holds one image: add at least one more, or remove the folder")
        files += found
        labels += [label] * len(found)
    return files, labels, len(places)


def _images_in(place: Path) -> list[Path]:
    found = []
    for file in sorted(place.iterdir()):
        if file.is_symlink() and not file.exists():
            raise AyfError(f"{file} is a link to {file.readlink()}, which is not there: mend or remove the link")
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
            found.append(file)
    return found
