"""Folders that another process is writing in. Hostile names and documents: tests/security."""

import os
from pathlib import Path
from typing import Any

import pytest

from ayf_core.files import found_below


def test_a_folder_renamed_while_it_is_looked_into_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("a/going", "b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "stop").touch()
    look = os.scandir

    def too_late(place: Any) -> Any:
        if Path(place).name == "going":
            Path(place).rename(tmp_path / "a" / ".gone")
        return look(place)

    monkeypatch.setattr(os, "scandir", too_late)
    assert tmp_path / "b/stop" in found_below(tmp_path, "stop")


def test_found_at_any_depth_by_pattern_but_not_in_hidden_folders(tmp_path: Path) -> None:
    for place in ("step_1", "a/b/step_2", "a/.step_3.partial/step_3"):
        (tmp_path / place).mkdir(parents=True)
    assert sorted(found_below(tmp_path, "step_?")) == [tmp_path / "a/b/step_2", tmp_path / "step_1"]
    assert found_below(tmp_path / "none", "step_?") == []
