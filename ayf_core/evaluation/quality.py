"""How good a set of generated samples is: every measure that applies, beside what real data reach."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from ayf_core.evaluation.catalogue import applicable
from ayf_core.evaluation.features.base import FeatureExtractor
from ayf_core.evaluation.measures import Compared, Real, subset

FLOOR_DRAWS = 20


@dataclass(frozen=True)
class ImageReference:
    """Features of the real images, computed once.

    A Fréchet distance grows as a set shrinks, so sets are compared at equal counts: with the training images all of as
    many generated ones (`fd`, the field's convention), with the held-out test images a random subset (`fd_test`). Only
    `fd_test` has a floor that real images set: a model that copies its training images has `fd` 0.
    """

    extractor: FeatureExtractor
    train: Float[Tensor, "N F"]
    test: Float[Tensor, "M F"]
    neighbours: int

    def measure(self, images: Float[Tensor, "N C H W"], seed: int) -> dict[str, float]:
        """Every measure of features.

        Args:
            images: as many as there are training images, in random order of quality.
            seed: of the subset that is compared with the test split.
        """
        return _values(self._beside(self.extractor(images.clamp(-1, 1)), seed), ["features"])

    def floor(self, seed: int) -> dict[str, float]:
        """What real training images reach against the test split, at the same counts: a mean over subsets."""
        draws = (self._beside(self.train, seed + i) for i in range(FLOOR_DRAWS))
        return _mean([_values(draw, ["features"], floor=True) for draw in draws])

    def _beside(self, features: Tensor, seed: int) -> Compared:
        return Compared(features, self._real, seed)

    @cached_property
    def _real(self) -> Real:
        return Real(self.train, self.test, neighbours=self.neighbours)


@dataclass(frozen=True)
class PointReference:
    """Real points in the plane; `half_width` of the square that they lie in, where they do."""

    train: Float[Tensor, "N 2"]
    test: Float[Tensor, "M 2"]
    half_width: float | None

    def measure(self, points: Float[Tensor, "N 2"], seed: int) -> dict[str, float]:
        """Every measure of points; `seed` is of the subset and the directions that are drawn."""
        return _values(self._beside(points, seed), self._gives)

    def floor(self, seed: int) -> dict[str, float]:
        """What real training points reach against the test split: a mean over orders of them."""
        seeds = [seed + i for i in range(FLOOR_DRAWS)]
        draws = (self._beside(subset(self.train, len(self.train), own), own) for own in seeds)
        return _mean([_values(draw, self._gives, floor=True) for draw in draws])

    @property
    def _gives(self) -> list[str]:
        return ["points"] if self.half_width is None else ["points", "half_width"]

    def _beside(self, points: Tensor, seed: int) -> Compared:
        return Compared(points, self._real, seed)

    @cached_property
    def _real(self) -> Real:
        return Real(self.train, self.test, half_width=self.half_width or 0.0)


def _values(compared: Compared, gives: list[str], floor: bool = False) -> dict[str, float]:
    chosen = applicable(gives).items()
    return {name: measure.load()(compared) for name, measure in chosen if not floor or measure.facts.get("floor")}


def _mean(draws: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]}
