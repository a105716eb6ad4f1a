"""A metrics file followed while it grows: each record is shown and handed over once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pipelines.execution import follower as following
from pipelines.execution.follower import Follower
from pipelines.tracking.retry import Retry


class Seen:
    """In place of a screen: what it was shown."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.grew = threading.Event()

    def update(self, records: list[dict]) -> None:
        self.steps += [record["step"] for record in records]
        if 2 in self.steps:
            self.grew.set()

    def remark(self, text: str) -> None: ...


def note(path: Path, step: int) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "total": 3, "time": float(step), "metrics": {"loss": 1.0}}) + "\n")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)


def test_what_arrives_while_the_store_is_told_is_told_next(tmp_path: Path) -> None:
    path, seen = tmp_path / "metrics.jsonl", Seen()
    told: list[list[int]] = []

    def on_log(records: list[dict]) -> None:
        told.append([record["step"] for record in records])
        if len(told) == 1:  # the store is slow, and training goes on
            note(path, 2)
            assert seen.grew.wait(30)

    note(path, 1)
    with Follower(path, on_log, seen, Retry("here", 1.0)) as follower:  # type: ignore[arg-type]
        assert seen.grew.wait(30)
        note(path, 3)
        follower.finish()
    assert seen.steps == [1, 2, 3]
    assert told[0] == [1]
    assert [step for steps in told for step in steps] == [1, 2, 3]
