"""What the terminal shows of a job that runs elsewhere: its log, and the very progress bar of a training."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from rich.console import Console

from pipelines.execution.progress import TrainingProgress


class LogTail:
    """Reads what a text file gains."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.started = False

    def new(self) -> str:
        """Whole lines since the last call."""
        if not self._path.exists():
            return ""
        self.started = True
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode(errors="replace")


class ProgressMirror:
    """Replays what `pipelines.execution.progress` notes in a job's `progress.jsonl`, one bar a training."""

    def __init__(self, path: Path, console: Console | None = None) -> None:
        self._tail = LogTail(path)
        self._console = console or Console()
        self._bar: TrainingProgress | None = None

    def __enter__(self) -> ProgressMirror:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def print(self, text: str) -> None:
        """Log lines, above the bar."""
        self._console.print(text.rstrip("\n"), highlight=False, markup=False, soft_wrap=True)

    def update(self) -> None:
        """Show what is new; outside a terminal the log says it already."""
        for line in self._tail.new().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # cut off by a fault
            if not self._console.is_terminal:
                continue
            if event["event"] == "begin":
                self._close()
                self._bar = TrainingProgress(event["name"], self._console, quiet=True)
                self._bar.__enter__()
            elif event["event"] == "end":
                self._close()
            elif self._bar is not None and event["event"] == "note":
                self._bar.note(event["text"])
            elif self._bar is not None:
                self._bar.update([event["record"]])

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
