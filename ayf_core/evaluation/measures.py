"""Every measure of quality, each a function of what it compares.

A measure registers, beside its title and the format of its figures, the facts

- `needs`: what it compares, "features" or "points", and "half_width" where it must know the square that points lie in;
- `better`: "lower" or "higher"; without it neither is better;
- `order`: its place in tables and files; `table` says whether tables for a first look show it;
- `headline`: whether it is the first figure told of a model, and what models are compared by;
- `logged`: whether it becomes a metric of the evaluation's run, at each number of network calls;
- `floor`: whether it compares with the test split, so that real training data have a figure too.

The figures of two models compare only at equal counts of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.evaluation.distances import (
    PRDC,
    Gaussian,
    as_features,
    checkerboard_divergence,
    frechet_distance_of_gaussians,
    kernel_distance,
    kth_neighbour,
    precision_recall_density_coverage,
    sliced_wasserstein,
)
from ayf_core.evaluation.memorisation import Memorisation, RealNeighbours, nearest_neighbour_check
from ayf_core.registry import register

PROJECTIONS = 128
"""Directions of the sliced Wasserstein distance."""


@dataclass(frozen=True)
class Real:
    """Real samples, as features or points, and what depends on them alone: computed once, when first asked for.

    Attributes:
        neighbours: k of precision, recall, density and coverage.
        half_width: half the side of the square that points lie in.
    """

    train: Float[Tensor, "T F"]
    test: Float[Tensor, "M F"]
    neighbours: int = 0
    half_width: float = 0.0

    @cached_property
    def train_gaussian(self) -> Gaussian:
        return Gaussian.of(self.train)

    @cached_property
    def test_gaussian(self) -> Gaussian:
        return Gaussian.of(self.test)

    @cached_property
    def test_radius(self) -> Float[Tensor, " M"]:
        """Of the balls of precision, density and coverage."""
        return kth_neighbour(as_features(self.test), self.neighbours)

    @cached_property
    def nearest(self) -> RealNeighbours:
        return RealNeighbours.of(self.train, self.test)


@dataclass(frozen=True)
class Compared:
    """Samples of a model beside real ones, as features or points: what a measure is given.

    Attributes:
        generated: of the model, as many as there are training data.
        seed: of whatever a measure draws.
    """

    generated: Float[Tensor, "N F"]
    real: Real
    seed: int

    @property
    def train(self) -> Float[Tensor, "T F"]:
        return self.real.train

    @property
    def test(self) -> Float[Tensor, "M F"]:
        return self.real.test

    @cached_property
    def as_many_as_test(self) -> Float[Tensor, "M F"]:
        """A random subset of the generated: what is compared with the test split, at equal counts."""
        return subset(self.generated, len(self.test), self.seed)

    @cached_property
    def shares(self) -> PRDC:
        return precision_recall_density_coverage(
            self.test, self.as_many_as_test, self.real.neighbours, self.real.test_radius
        )

    @cached_property
    def copies(self) -> Memorisation:
        return nearest_neighbour_check(self.generated, self.train, self.test, self.real.nearest)


def subset(x: Float[Tensor, "N F"], count: int, seed: int) -> Float[Tensor, "M F"]:
    """`count` rows of x in random order."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:count]]


@register(
    "measure",
    "fd",
    title="Fréchet distance to training data",
    needs=["features"],
    better="lower",
    order=1,
    table=True,
    headline=True,
    logged=True,
    format=".3g",
)
def fd(compared: Compared) -> float:
    """To all training data, the field's convention: a model that copies them has 0."""
    return frechet_distance_of_gaussians(Gaussian.of(compared.generated), compared.real.train_gaussian)


@register(
    "measure",
    "fd_test",
    title="Fréchet distance to test data",
    needs=["features"],
    better="lower",
    order=2,
    table=True,
    floor=True,
    format=".3g",
)
def fd_test(compared: Compared) -> float:
    return frechet_distance_of_gaussians(Gaussian.of(compared.as_many_as_test), compared.real.test_gaussian)


@register(
    "measure",
    "kernel_distance",
    title="Kernel distance to test data",
    needs=["features"],
    better="lower",
    order=3,
    floor=True,
    format=".3g",
)
def kernel(compared: Compared) -> float:
    return kernel_distance(compared.as_many_as_test, compared.test)


@register(
    "measure",
    "precision",
    title="Precision",
    needs=["features"],
    better="higher",
    order=4,
    table=True,
    floor=True,
    format=".3g",
)
def precision(compared: Compared) -> float:
    return compared.shares.precision


@register(
    "measure",
    "recall",
    title="Recall",
    needs=["features"],
    better="higher",
    order=5,
    table=True,
    logged=True,
    floor=True,
    format=".3g",
)
def recall(compared: Compared) -> float:
    return compared.shares.recall


@register("measure", "density", title="Density", needs=["features"], better="higher", order=6, floor=True, format=".3g")
def density(compared: Compared) -> float:
    return compared.shares.density


@register(
    "measure",
    "coverage",
    title="Coverage",
    needs=["features"],
    better="higher",
    order=7,
    table=True,
    floor=True,
    format=".3g",
)
def coverage(compared: Compared) -> float:
    return compared.shares.coverage


@register("measure", "copy_ratio", title="Copy ratio", needs=["features"], order=8, table=True, format=".3g")
def copy_ratio(compared: Compared) -> float:
    """1 is as it should be: below it samples are copies, above it they lie further off than real data."""
    return compared.copies.copy_ratio


@register("measure", "authenticity", title="Authenticity", needs=["features"], better="higher", order=9, format=".3g")
def authenticity(compared: Compared) -> float:
    return compared.copies.authenticity


@register(
    "measure",
    "jsd",
    title="Jensen-Shannon divergence",
    needs=["points", "half_width"],
    better="lower",
    order=1,
    table=True,
    headline=True,
    logged=True,
    floor=True,
    format=".3g",
)
def jsd(compared: Compared) -> float:
    """Of densities, in nats, to the test split."""
    return checkerboard_divergence(compared.test, compared.generated, board_half_width=compared.real.half_width)


@register(
    "measure",
    "sliced_wasserstein",
    title="Sliced Wasserstein distance",
    needs=["points"],
    better="lower",
    order=2,
    table=True,
    floor=True,
    format=".3g",
)
def sliced(compared: Compared) -> float:
    """Of order 2, to the test split."""
    generator = torch.Generator().manual_seed(compared.seed)
    return sliced_wasserstein(compared.as_many_as_test, compared.test, PROJECTIONS, generator)
