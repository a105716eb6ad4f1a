"""A short soak; `python -m tests.reliability.soak` runs a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.lab import STAGE
from tests.reliability.soak import outputs, soak


@pytest.mark.slow
def test_a_pipeline_killed_again_and_again_makes_what_one_left_alone_makes(tmp_path: Path, left_alone: Path) -> None:
    expected = outputs(left_alone)
    assert len(expected) >= 4
    outcome = soak(tmp_path, kills=5, seed=1, longest=12.0, changes=(), until=STAGE, expected=expected)
    assert sum(outcome.kills.values()) == 5
    assert outcome.pipelines >= 1
    assert not outcome.differing
