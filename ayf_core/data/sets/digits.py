"""Scikit-learn's 1,797 handwritten digits, 8 x 8 pixels: a real data set that comes with the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ayf_core.data.sets.base import DataSource, Examples
from ayf_core.errors import require
from ayf_core.registry import register

SIDE = 8


@register("data set", "digits", title="Handwritten digits", gives=["features"])
@dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """Grey images [1, 8, 8] of ten classes."""

    @property
    def side(self) -> int:
        return SIDE

    def examples(self, generator: torch.Generator) -> Examples:
        bundled = require("sklearn.datasets", extra="platform", needed_for="the data set digits").load_digits()
        pixels = torch.from_numpy(bundled.images).float()[:, None]  # 0 ... 16
        return Examples(pixels / 8.0 - 1.0, torch.from_numpy(bundled.target.astype(np.int64)), 10)
