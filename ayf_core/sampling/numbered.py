"""Samples that have a number: what sample i of a seed starts from is the same whatever is drawn beside it."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from ayf_core.randomness import StepRandom

_NOISE, _LABEL = "noise of a sample", "label of a sample"


class NumberedNoise:
    """The noise of samples [first, last) of a seed; each call draws fresh noise for the same samples.

    Used as the `generator` of γ-sampling, it renews the noise of each sample by that sample's number and the number of
    times that it was asked.

    Args:
        first, last: numbers of the samples; `last` itself is not among them.
    """

    def __init__(self, seed: int, first: int, last: int) -> None:
        self.seed = seed
        self.rows = slice(first, last)
        self.drawn = 0

    def __call__(self, like: Tensor) -> Tensor:
        """N(0, 1) of the shape, type and device of `like` [last - first, *D]."""
        random = StepRandom(self.seed, self.drawn, self.rows, like.device)
        self.drawn += 1
        return random.normal(_NOISE, tuple(like.shape[1:]), like.dtype)


def balanced_labels(first: int, last: int, choices: Sequence[int]) -> Int64[Tensor, " n"]:
    """Labels of samples [first, last): the choices in turn, so that of any first N each has as many as another."""
    return torch.tensor(choices)[torch.arange(first, last) % len(choices)]


def drawn_labels(seed: int, first: int, last: int, counts: Int64[Tensor, " K"]) -> Int64[Tensor, " n"]:
    """Labels of samples [first, last), each drawn by itself in proportion to how often its class occurs.

    Args:
        counts: how often each of the K classes occurs.
    """
    shares = counts.double().cumsum(0) / counts.sum()
    uniform = StepRandom(seed, 0, slice(first, last)).uniform(_LABEL)
    return torch.searchsorted(shares, uniform, right=True).clamp_max(len(counts) - 1)
