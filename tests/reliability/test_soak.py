"""A short soak; `python -m tests.reliability.soak` runs a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.soak import soak


@pytest.mark.slow
def test_a_pipeline_killed_again_and_again_makes_what_one_left_alone_makes(tmp_path: Path) -> None:
    outcome = soak(tmp_path, kills=5, seed=1, longest=12.0, changes=(), until="distill@emd")
    assert sum(outcome.kills.values()) == 5
    assert outcome.pipelines >= 1
    assert not outcome.differing
