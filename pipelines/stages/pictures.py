"""Pictures of samples: a grid of images, or a density of points in the plane."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ayf_core.conditions import ClassLabels, Condition
from ayf_core.data.codecs.base import Codec
from ayf_core.errors import AyfError
from ayf_core.sampling.generator import Generator

PAPER, INK, GAP = 255, (40, 40, 40), 2
POINT_BINS, POINT_REACH = 160, 1.25
POINTS_SHOWN = 20_000
"""Enough to see a density of points."""
MOST_ROWS = 10
"""Of classes in one picture."""


def grid(x: Tensor, columns: int | None = None, side: int = 40) -> Image.Image:
    """Images [N, C, H, W] in [-1, 1] in rows of `columns`, each about `side` pixels; points [N, 2] as one density."""
    if x.ndim == 2:
        return density(x, 4 * side)
    columns = columns or math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    factor = max(1, round(side / x.shape[-1]))
    height, width = x.shape[-2] * factor, x.shape[-1] * factor
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), (PAPER,) * 3)
    for i, image in enumerate(x):
        pixels = eight_bits(image).expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
        tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (GAP + (i % columns) * (width + GAP), GAP + (i // columns) * (height + GAP)))
    return sheet


def eight_bits(x: Float[Tensor, " *shape"]) -> UInt8[Tensor, " *shape"]:
    """Images in [-1, 1] as pixels of 8 bits; what lies outside is cut off."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


def density(points: Tensor, side: int, reach: float = POINT_REACH * math.sqrt(3)) -> Image.Image:
    """How densely points [N, 2] lie in [-reach, reach]², dark where dense."""
    counts, _, _ = np.histogram2d(
        points[:, 1].cpu().numpy(), points[:, 0].cpu().numpy(), bins=POINT_BINS, range=[[-reach, reach]] * 2
    )
    scale = max(1.0, float(np.quantile(counts[counts > 0], 0.98)) if (counts > 0).any() else 1.0)
    shade = (255 * (1 - np.clip(counts / scale, 0, 1))).astype(np.uint8)[::-1]
    return Image.fromarray(shade).resize((side, side), Image.Resampling.BILINEAR).convert("RGB")


def labelled_columns(columns: Mapping[str, Image.Image], title_height: int = 26) -> Image.Image:
    """Pictures side by side, each under its title."""
    font = ImageFont.load_default(size=15)
    gap = 14
    height = title_height + max(image.height for image in columns.values())
    width = sum(image.width for image in columns.values()) + gap * (len(columns) + 1)
    sheet = Image.new("RGB", (width, height + gap), (PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    left = gap
    for title, image in columns.items():
        draw.text((left + image.width / 2, title_height / 2), title, fill=INK, font=font, anchor="mm")
        sheet.paste(image, (left, title_height))
        left += image.width + gap
    return sheet


def samples(folder: Path, device: torch.device | str = "cpu", columns: int = 10) -> Image.Image:
    """A first look at what the model in a folder draws, one class a row: always the same noise."""
    model = Generator.load(folder, device)
    noise, condition = preview_inputs(model, columns, seed=0)
    return grid(model.sample(noise, model.sampler.preview_evaluations, condition).x, columns)


def reconstructions(codec: Codec, images: Float[Tensor, "N C H W"], columns: int = 10) -> Image.Image:
    """The first of these images, and below each what the codec makes of it."""
    real = images[:columns]
    mean, _ = codec.encode(real)
    return grid(torch.cat([real, codec.decode(mean)]), columns=len(real))


def preview_inputs(
    model: Generator, columns: int, seed: int, labels: Sequence[int] | None = None
) -> tuple[Tensor, Condition]:
    """Noise and condition of a picture of a model's samples, one class a row.

    A row of `columns` for each of `labels` (of the first ten classes, if none are named); as many rows as columns of a
    model without classes; of one that makes points enough of them to see their density.

    Raises:
        AyfError: a label that the model does not know.
    """
    classes = class_count(model)
    if labels is None:
        labels = range(min(classes, MOST_ROWS))
    check_labels(labels, classes)
    rows = torch.tensor(list(labels), dtype=torch.long).repeat_interleave(columns)
    count = POINTS_SHOWN if model.makes_points else len(rows) or columns**2
    noise = model.draw_noise(count, seed)
    if not classes:
        return noise, Condition()
    return noise, Condition(labels=rows[torch.arange(count) % len(rows)].to(noise.device))


def check_labels(labels: Iterable[int], classes: int) -> None:
    """Raise AyfError for a label that none of so many classes has."""
    unknown = [label for label in labels if not 0 <= label < classes]
    if unknown:
        choose = f"choose 0 to {classes - 1}" if classes else "it has none, leave labels out"
        raise AyfError(f"label {unknown[0]} is not one of the model's classes: {choose}")


def class_count(model: Generator) -> int:
    """How many classes a model knows; 0 of one that is not conditioned on labels."""
    known = model.spec.conditions.get("labels")
    return known.num_classes if isinstance(known, ClassLabels) else 0
