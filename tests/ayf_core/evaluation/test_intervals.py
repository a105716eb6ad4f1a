"""Confidence intervals against scipy's Student t."""

from __future__ import annotations

import pytest

from ayf_core.evaluation.intervals import confidence_interval, student_t_quantile


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 4, 5, 9, 30, 101])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_quantile_agrees_with_scipy(level: float, degrees_of_freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.t.ppf(0.5 + level / 2, degrees_of_freedom)
    assert student_t_quantile(level, degrees_of_freedom) == pytest.approx(expected, rel=1e-9)


def test_interval_of_three_seeds() -> None:
    interval = confidence_interval([1.0, 2.0, 3.0])
    # s = 1, t with 2 degrees of freedom = 4.30265...
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302652729911275 / 3**0.5, rel=1e-9)
    assert (interval.low, interval.high) == pytest.approx((2 - interval.half_width, 2 + interval.half_width))
    assert interval.count == 3


def test_single_value_has_no_interval() -> None:
    interval = confidence_interval([4.0])
    assert (interval.mean, interval.low, interval.high, interval.half_width) == (4.0, None, None, None)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert confidence_interval([2.0] * 5).half_width == 0.0


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([1.0, 2.0], 1.0), ([1.0, 2.0], 0.0)])
def test_nothing_to_average_is_refused(values: list[float], level: float) -> None:
    with pytest.raises(ValueError, match="interval"):
        confidence_interval(values, level)
