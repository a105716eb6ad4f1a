"""Magnitudes of the Fourier coefficients as features: they do not change when a picture is moved."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ayf_core.evaluation.features.base import FeatureExtractor, FeaturesChoice
from ayf_core.registry import register
from ayf_core.settings import setting


class FourierFeatures:
    """Features [N, size * size], float64."""

    name = "fourier"
    distance_name = "Fréchet distance of Fourier magnitudes"

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x.double()).abs()[:, 0, : self.size, : self.size].flatten(1)


@register("features", "fourier", title="Fourier magnitudes")
@dataclass(frozen=True, kw_only=True)
class Fourier(FeaturesChoice):
    """The lowest `size` x `size` frequencies of the first channel."""

    size: int = setting("frequencies in each direction", at_least=1)

    def extractor(self, folder: Path, device: torch.device | str) -> FeatureExtractor:
        return FourierFeatures(self.size)
