"""Patches of [B, C, *spatial] as tokens and back, for sounds (1-D), images (2-D), volumes and films (3-D)."""

import math

from jaxtyping import Float
from torch import Tensor


def patch_grid(spatial: tuple[int, ...], patch_size: int) -> tuple[int, ...]:
    """How many patches lie along each spatial axis; every side must be a multiple of the patch's."""
    return tuple(side // patch_size for side in spatial)


def to_tokens(x: Float[Tensor, "batch channels *spatial"], patch_size: int) -> Float[Tensor, "batch tokens patch"]:
    """[B, C, *spatial] -> [B, tokens, C * patch^n], tokens in the order of the spatial axes, the last one fastest."""
    batch, channels, *spatial = x.shape
    grid = patch_grid(tuple(spatial), patch_size)
    cut = x.reshape(batch, channels, *(part for count in grid for part in (count, patch_size)))
    counts, insides = range(2, 2 + 2 * len(grid), 2), range(3, 3 + 2 * len(grid), 2)
    return cut.permute(0, *counts, 1, *insides).reshape(batch, math.prod(grid), -1)


def to_image(
    tokens: Float[Tensor, "batch tokens patch"], grid: tuple[int, ...], patch_size: int
) -> Float[Tensor, "batch channels *spatial"]:
    """The way back: [B, tokens, C * patch^n] -> [B, C, *spatial] for `grid` patches along each axis."""
    n = len(grid)
    cut = tokens.reshape(len(tokens), *grid, -1, *(patch_size,) * n)
    order = (axis for pair in zip(range(1, 1 + n), range(2 + n, 2 + 2 * n), strict=True) for axis in pair)
    sides = (count * patch_size for count in grid)
    return cut.permute(0, 1 + n, *order).reshape(len(tokens), -1, *sides)
