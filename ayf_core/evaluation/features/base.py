"""What an extractor of features is, and how one comes about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


WIDTH_STEP = 4
"""Groups of the normalisation layers of networks here; they divide the width."""


class FeatureExtractor(Protocol):
    """What turns samples (images [N, C, H, W] in [-1, 1]) into the features that distances are measured in.

    Only a Fréchet distance of Inception-v3 features may be called FID; `distance_name` says which it is.
    """

    name: str
    distance_name: str

    def __call__(self, x: Float[Tensor, " N *D"]) -> Float[Tensor, "N F"]:
        """Features, float64, on the CPU."""
        ...


class FeaturesChoice(ABC):
    """A space of features as a person chooses it: the base of every extractor's settings.

    Attributes:
        needs_training: whether a network is to be trained first. `new` then makes it.
    """

    needs_training: ClassVar[bool] = False

    def problems(self) -> Iterator[str]:
        """A line for each value that its own range does not refuse and that still cannot be used."""
        return iter(())

    def check(self, example_shape: Sequence[int], num_classes: int) -> None:  # noqa: B027  (some suit all data)
        """Look, before anything is trained, whether features of such data can be taken on this machine.

        Raises:
            AyfError: they cannot; what to set or install instead.
        """

    def new(self, example_shape: Sequence[int], num_classes: int) -> Any:
        """The network to train: it maps examples to logits of the classes, and `save`s itself to a folder."""
        raise NotImplementedError(f"{type(self).__name__} trains nothing")

    def record(self, folder: Path) -> dict[str, Any]:
        """What `features.json` holds besides the kind, so that a later change of what is read elsewhere is seen."""
        return {}

    @abstractmethod
    def extractor(self, folder: Path, device: torch.device | str) -> FeatureExtractor:
        """The extractor.

        Args:
            folder: `models/features`, with the trained network where there is one.
            device: where a network computes.

        Raises:
            AyfError: naming the file that is missing or damaged, or the package that is not installed.
        """
