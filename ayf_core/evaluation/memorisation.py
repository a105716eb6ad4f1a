"""Does a model copy its training data? Nearest neighbours tell, where distances between sets cannot.

A model that returns training images has a small distance to the training set and to any test set drawn alike;
only the distance from each sample to its nearest training image gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ayf_core.errors import AyfError
from ayf_core.evaluation.distances import as_features, nearest_distances


@dataclass(frozen=True)
class Memorisation:
    """Nearest-neighbour distances of generated and held-out images to the training images.

    How to read it: `copy_ratio` 1 means generated images lie as far from the training images as held-out real
    ones do; far below 1 means they are copies; above 1, that they lie further off than real images, as
    blurred or broken ones may. `authenticity` is the share of generated images that are not suspiciously
    close to their nearest training image (Alaa et al. 2022, arXiv:2102.08921, section 3.3); real held-out
    images score `test_authenticity`, about 1/2, copies score 0.
    """

    copy_ratio: float
    authenticity: float
    test_authenticity: float
    generated_to_train: float
    test_to_train: float


@dataclass(frozen=True)
class RealNeighbours:
    """How near real features lie to the training features: the same whatever is generated.

    Attributes:
        own: distance of each training image to the nearest other one.
        from_test, of_test: distance of each test image to its nearest training image, and that one's index.
    """

    own: Float[Tensor, " T"]
    from_test: Float[Tensor, " M"]
    of_test: Int64[Tensor, " M"]

    @classmethod
    def of(cls, train: Float[Tensor, "T F"], test: Float[Tensor, "M F"]) -> RealNeighbours:
        """Raises as `nearest_neighbour_check` does."""
        train, test = as_features(train), as_features(test, at_least=1)
        own, _ = nearest_distances(train, train, skip_self=True)
        found = cls(own, *nearest_distances(test, train))
        if found.test_to_train == 0.0:
            raise AyfError(
                "half of the test images are exact copies of training images: remove duplicates from the data set"
            )
        return found

    @property
    def test_to_train(self) -> float:
        """The median distance of a test image to its nearest training image."""
        return torch.quantile(self.from_test, 0.5).item()


def nearest_neighbour_check(
    generated: Float[Tensor, "N F"],
    train: Float[Tensor, "T F"],
    test: Float[Tensor, "M F"],
    real: RealNeighbours | None = None,
) -> Memorisation:
    """Compare how near generated and held-out features lie to the training features.

    copy_ratio = median_i d(g_i, train) / median_j d(test_j, train), d the Euclidean distance to the nearest
    training image; authenticity = share of i with d(g_i, x) > d(x, train without x), x the training image
    nearest to g_i.

    Args:
        real: `RealNeighbours.of(train, test)`, where it is known already.

    Raises:
        AyfError: features that are not finite or fit, fewer than two training images, or test images of which
            half are exact copies of training images, so that the ratio means nothing.
    """
    train, generated = as_features(train), as_features(generated)
    real = RealNeighbours.of(train, test) if real is None else real
    from_generated, of_generated = nearest_distances(generated, train)
    generated_to_train = torch.quantile(from_generated, 0.5).item()
    return Memorisation(
        copy_ratio=generated_to_train / real.test_to_train,
        authenticity=(from_generated > real.own[of_generated]).double().mean().item(),
        test_authenticity=(real.from_test > real.own[real.of_test]).double().mean().item(),
        generated_to_train=generated_to_train,
        test_to_train=real.test_to_train,
    )
