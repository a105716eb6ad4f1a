"""The numbers of an image as they are, in one row: needs nothing, and knows nothing of what is seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.evaluation.features.base import FeaturesChoice
from ayf_core.registry import register


class PixelFeatures:
    """The numbers of an image or point as they are, in one row."""

    name = "pixels"
    distance_name = "FD"

    def __call__(self, x: Float[Tensor, " N *D"]) -> Float[Tensor, "N F"]:
        return x.detach().flatten(1).double().cpu()


@register("features", "pixels", title="Pixels or points as they are")
@dataclass(frozen=True, kw_only=True)
class Pixels(FeaturesChoice):
    """Has no settings."""

    def extractor(self, folder: Path, device: torch.device | str) -> PixelFeatures:
        return PixelFeatures()
