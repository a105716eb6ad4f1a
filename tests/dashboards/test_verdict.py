"""Models of a few steps are not compared as if they were trained."""

from __future__ import annotations

import pandas as pd
import pytest

from dashboards import views
from dashboards.verdict import untrained


def test_a_teacher_far_from_real_data_is_called_barely_trained() -> None:
    said = untrained({"fd": 2.2, "fd_test": 2.22, "recall": 0.0}, {"fd_test": 0.0274, "recall": 0.97})
    assert said is not None
    assert said.startswith(
        "These models are barely trained: the teacher's best fd_test, 2.22, is 81 times that of real"
    )


@pytest.mark.parametrize(
    ("teacher", "floor"),
    [
        ({"fd_test": 1.53}, {"fd_test": 1.37}),  # digits
        ({"jsd": 0.0129}, {"jsd": 0.0058}),  # checkerboard
        ({"fd_test": 1.53}, {}),  # no floor was measured
        ({}, {"fd_test": 1.37}),  # no teacher was
        ({"fd_test": 1.53}, {"fd_test": 0.0}),
    ],
)
def test_a_teacher_near_real_data_or_unmeasured_is_not(teacher: dict[str, float], floor: dict[str, float]) -> None:
    assert untrained(teacher, floor) is None


def test_the_page_says_so_above_its_figures() -> None:
    row = {
        "run_id": "1",
        "model": "teacher",
        "sweep": "quality",
        "distance": "fd",
        "nfe": 7,
        "guidance_scale": None,
        "gamma": 0.0,
    }
    metrics = pd.DataFrame([{**row, "fd": 2.2, "fd_ci95": 0.1, "fd_test": 2.22, "fd_test_ci95": 0.1}])
    metrics.attrs["floor"] = {"fd_test": 0.0274}
    assert views.quality(metrics).text.startswith("These models are barely trained")
    metrics.attrs["floor"] = {"fd_test": 1.9}
    assert "barely trained" not in views.quality(metrics).text
