"""Mean and confidence interval of a few repetitions, such as one metric over several sampling seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; `low` and `high` are None for a single value, which has none."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half_width(self) -> float | None:
        """What stands after the plus-minus sign."""
        return None if self.high is None else self.high - self.mean


def confidence_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The interval mean ± q s / sqrt(n), s the sample standard deviation, q Student's t quantile.

    It covers the mean over repetitions, supposed independent and about normal; for sampling seeds that is the
    scatter of sampling alone, not of training.

    Raises:
        ValueError: no value, or a level outside (0, 1).
    """
    count = len(values)
    if count == 0 or not 0.0 < level < 1.0:
        raise ValueError(f"an interval needs a value and a level in (0, 1), got {count} values, level {level}")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half_width = student_t_quantile(level, count - 1) * math.sqrt(variance / count)
    return Interval(mean, mean - half_width, mean + half_width, count)


def student_t_quantile(level: float, degrees_of_freedom: int) -> float:
    """The q with P(|T| <= q) = level for Student's t; written out here so that scipy is not needed."""
    low, high = 0.0, 1.0
    while _student_t_mass(high, degrees_of_freedom) < level:
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        if _student_t_mass(middle, degrees_of_freedom) < level:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _student_t_mass(q: float, degrees_of_freedom: int) -> float:
    """P(|T| <= q): the finite sums for whole degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(q / math.sqrt(degrees_of_freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees_of_freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if degrees_of_freedom > 1 else 0.0
    for k in range(3 if odd else 2, degrees_of_freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return (angle + sine * total) * 2.0 / math.pi if odd else sine * total
