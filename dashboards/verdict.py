"""Whether a comparison of models says anything: not where even the teacher is far from real data."""

from __future__ import annotations

from collections.abc import Mapping

JUDGED_BY = ("fd_test", "jsd")
"""Distances to test data, of which real training data set the floor: the first that was measured judges."""

FAR = 10.0
"""So many times the floor is far: the teachers of `digits` and `checkerboard` reach 1.1 and 2.2, that of `smoke` 81."""


def untrained(teacher: Mapping[str, float], floor: Mapping[str, float]) -> str | None:
    """A sentence that says by how much the teacher misses real data; None where it comes near, or nothing is known.

    Args:
        teacher: its best value of each measure.
        floor: what real training data reach against real test data.
    """
    measure = next((name for name in JUDGED_BY if name in teacher and floor.get(name, 0.0) > 0.0), None)
    if measure is None or not teacher[measure] > FAR * floor[measure]:
        return None
    reached, real = teacher[measure], floor[measure]
    times = f"{reached / real:.0f} times that of real training data ({real:.3g})"
    return (
        f"These models are barely trained: the teacher's best {measure}, {reached:.3g}, is {times}. A ratio of 1 to "
        "such a teacher is no achievement, and the figures do not compare methods."
    )
