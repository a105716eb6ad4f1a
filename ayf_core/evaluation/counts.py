"""Whether there are examples enough to measure against: asked when the data are first read, before any training."""

from __future__ import annotations

import hashlib

from jaxtyping import Float
from torch import Tensor

from ayf_core.errors import AyfError


def check_counts(train: Float[Tensor, N * D], test: Float[Tensor, M * D], neighbours: int) -> None:
    """Look, before anything is trained, whether these examples are enough to be measured against.

    Raises:
        AyfError: they are not; the line names the settings `evaluation.neighbours` and `data.test_fraction`.
    """
    smaller = min(len(train), len(test))
    counts = f"data.test_fraction leaves {len(test)} examples to test with and {len(train)} to train on"
    if smaller < 2:
        raise AyfError(f"{counts}: evaluation needs 2 of each; add examples or change data.test_fraction")
    if train.ndim == 2:
        return  # neither neighbours nor copies of points are counted
    if neighbours >= smaller:
        raise AyfError(
            f"evaluation.neighbours = {neighbours}: {counts}, so it can be {smaller - 1} at most; lower it, change "
            "data.test_fraction or add images"
        )
    known = {_digest(image) for image in train}
    copies = sum(_digest(image) in known for image in test)
    if 2 * copies > len(test):
        raise AyfError(
            f"{copies} of {len(test)} test images are exact copies of training images: remove duplicates from the data "
            "set, or the measure of copying means nothing"
        )


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
