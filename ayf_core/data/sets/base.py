"""What a data set is: where its examples come from, and the two splits that they make.

Everything is held in memory as float32, which suits data of up to some hundred thousand small images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ayf_core.errors import AyfError
from ayf_core.settings import setting


@dataclass(frozen=True)
class Examples:
    """All examples of a data set, in an order that is always the same.

    Attributes:
        x: float32; images in [-1, 1], points in the plane.
        labels: the class of each, below `num_classes`.
    """

    x: Float[Tensor, " N *D"]
    labels: Int64[Tensor, " N"]
    num_classes: int


@dataclass(frozen=True)
class Split:
    """Examples x [N, *D] float32 (images [N, C, H, W] in [-1, 1], points [N, 2]) and labels [N] int64."""

    x: Float[Tensor, " N *D"]
    labels: Int64[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """Examples to train on and to test with. The two splits share no example, and each holds every class.

    Attributes:
        half_width: half the side of the square around 0 that points in the plane lie in; None of other data.
    """

    train: Split
    test: Split
    num_classes: int
    half_width: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.train.x.shape[1:])


@dataclass(frozen=True)
class Outline:
    """How large a data set is: the shape of one example, classes, examples to train on and to test with."""

    shape: tuple[int, ...]
    num_classes: int
    train: int
    test: int


@dataclass(frozen=True, kw_only=True)
class DataSource(ABC):
    """Where examples come from: the base of every data set.

    A data set registers, beside its title, the fact `gives`: what its samples can be measured by. That is "features"
    where a feature extractor takes them (images), "points" where they are compared as they are, and "half_width" where
    points lie in a known square.
    """

    test_fraction: float = setting("share held out for evaluation", above=0.0, at_most=0.5)

    @abstractmethod
    def examples(self, generator: torch.Generator) -> Examples:
        """All examples. Whatever is drawn is drawn from `generator`.

        Raises:
            AyfError: a setting or a file that cannot be used.
        """

    @property
    def half_width(self) -> float | None:
        """See `DataSet.half_width`."""
        return None

    @property
    def side(self) -> int | None:
        """The side of its images in pixels where that is known without reading one; None of other data."""
        return None

    def reads(self) -> tuple[Path, ...]:
        """Folders that the examples are read from: whoever keeps results must watch them for changes."""
        return ()

    def outline(self, seed: int) -> Outline:
        """What `load` would give, without its tensors; worth overriding where reading takes long.

        Raises:
            AyfError: as `load` does.
        """
        loaded = self.load(seed)
        return Outline(loaded.shape, loaded.num_classes, len(loaded.train), len(loaded.test))

    def load(self, seed: int) -> DataSet:
        """The two splits; the same settings, files and seed give the same tensors.

        Args:
            seed: of the split, and of whatever the data set draws.

        Raises:
            AyfError: as `examples` does; for NaN or infinity in the data, or fewer than two examples in a class.
        """
        if not 0.0 < self.test_fraction < 1.0:
            raise AyfError(f"test_fraction is {self.test_fraction}: choose a value between 0 and 1, such as 0.2")
        generator = torch.Generator().manual_seed(seed)
        found = self.examples(generator)
        _check_finite(found.x)
        train, test = stratified_split(found.labels, self.test_fraction, generator)
        return DataSet(
            train=Split(found.x[train], found.labels[train]),
            test=Split(found.x[test], found.labels[test]),
            num_classes=found.num_classes,
            half_width=self.half_width,
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


def _check_finite(x: Tensor) -> None:
    bad = ~torch.isfinite(x.flatten(1)).all(dim=1)
    if bad.any():
        first = int(torch.nonzero(bad)[0])
        raise AyfError(
            f"the data hold NaN or infinity in {int(bad.sum())} of {len(x)} examples, first in number {first}: "
            "mend or remove them"
        )
