"""How good a set of generated samples is: every measure against the held-out test split and the training data."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.evaluation.distances import (
    checkerboard_divergence,
    frechet_distance,
    kernel_distance,
    precision_recall_density_coverage,
    sliced_wasserstein,
)
from ayf_core.evaluation.features import FeatureExtractor
from ayf_core.evaluation.memorisation import nearest_neighbour_check

FLOOR_DRAWS = 20
PROJECTIONS = 128


@dataclass(frozen=True)
class ImageReference:
    """Features of the real images, computed once.

    A Fréchet distance grows as a set shrinks, so sets are compared at equal counts: with the training images all
    of as many generated ones (`fd`, the field's convention), with the held-out test images a random subset (`fd_test`).
    Only `fd_test` has a floor that real images set: a model that copies its training images has `fd` 0.
    """

    extractor: FeatureExtractor
    train: Float[Tensor, "N F"]
    test: Float[Tensor, "M F"]
    neighbours: int

    @classmethod
    def of(cls, train: Tensor, test: Tensor, extractor: FeatureExtractor, neighbours: int) -> "ImageReference":
        return cls(extractor, extractor(train), extractor(test), neighbours)

    def measure(self, images: Float[Tensor, "N C H W"], seed: int) -> dict[str, float]:
        """fd, fd_test, kernel distance, precision, recall, density, coverage, copy ratio and authenticity.

        All but `fd` and the last two compare with the test split.

        Args:
            images: as many as there are training images, in random order of quality.
            seed: of the subset that is compared with the test split.
        """
        features = self.extractor(images.clamp(-1, 1))
        copies = nearest_neighbour_check(features, self.train, self.test)
        return {
            "fd": frechet_distance(features, self.train),
            **self._against_test(_subset(features, len(self.test), seed)),
            "copy_ratio": copies.copy_ratio,
            "authenticity": copies.authenticity,
        }

    def _against_test(self, features: Tensor) -> dict[str, float]:
        shares = precision_recall_density_coverage(self.test, features, self.neighbours)
        return {
            "fd_test": frechet_distance(features, self.test),
            "kernel_distance": kernel_distance(features, self.test),
            "precision": shares.precision,
            "recall": shares.recall,
            "density": shares.density,
            "coverage": shares.coverage,
        }

    def floor(self, seed: int) -> dict[str, float]:
        """What real training images reach against the test split, at the same counts: a mean over subsets."""
        draws = [self._against_test(_subset(self.train, len(self.test), seed + i)) for i in range(FLOOR_DRAWS)]
        return _mean(draws)


@dataclass(frozen=True)
class PointReference:
    """Real points in the plane."""

    train: Float[Tensor, "N 2"]
    test: Float[Tensor, "M 2"]
    half_width: float

    def measure(self, points: Float[Tensor, "N 2"], seed: int) -> dict[str, float]:
        """jsd (Jensen-Shannon divergence of densities, nats) and sliced Wasserstein-2, to the test split."""
        generator = torch.Generator().manual_seed(seed)
        return {
            "jsd": checkerboard_divergence(self.test, points, board_half_width=self.half_width),
            "sliced_wasserstein": sliced_wasserstein(
                _subset(points, len(self.test), seed), self.test, PROJECTIONS, generator
            ),
        }

    def floor(self, seed: int) -> dict[str, float]:
        return _mean(
            [self.measure(_subset(self.train, len(self.train), seed + i), seed + i) for i in range(FLOOR_DRAWS)]
        )


def _subset(x: Tensor, count: int, seed: int) -> Tensor:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:count]]


def _mean(draws: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]}
