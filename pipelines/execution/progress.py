"""What a person sees while a stage trains: one tidy bar, or a line every tenth outside a terminal.

Inside a job, every event is noted in the file that AYF_PROGRESS_FILE names as well: the terminal that follows the job
shows the same bar from it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from pipelines.durations import duration

PROGRESS = "AYF_PROGRESS"
"""Environment variable: `lines` where other stages write to the same terminal, which has room for one bar."""

_RATE_WINDOW = 50
"""Records the shown rate is averaged over: steady, yet it follows a machine that becomes busy."""


class TrainingProgress:
    """Shows notes ("starting Ray") and then the records of a metrics file; a context manager.

    `unit` is what a record's step counts. `quiet` keeps the bar and leaves out the lines that stay when it is gone.
    """

    def __init__(self, name: str, console: Console | None = None, *, quiet: bool = False, unit: str = "steps") -> None:
        self._name = name
        self._quiet = quiet
        self._unit = unit
        self._events = None if quiet else os.environ.get("AYF_PROGRESS_FILE")
        self._console = console or Console()
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RATE_WINDOW)
        self._last: Mapping | None = None
        self._first: Mapping | None = None
        self._tenths_said = 0
        self._note = ""
        self._live = self._console.is_terminal and os.environ.get(PROGRESS) != "lines"
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._live)
        self._task = self._bar.add_task(name, total=None, figures="")

    def __enter__(self) -> TrainingProgress:
        self._tell(event="begin", name=self._name)
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        self._tell(event="end")
        if error is None and self._last is not None:
            self._summarise()

    def note(self, text: str) -> None:
        """Say what is being waited for, before the first step."""
        if text == self._note:
            return
        self._note = text
        self._tell(event="note", text=text)
        if self._live:
            self._bar.update(self._task, description=f"{self._name}: {text}" if text else self._name)
        elif text:
            self._say(text)

    def remark(self, text: str) -> None:
        """Say something that stays on the screen."""
        self._tell(event="note", text=text)
        self._say(text)

    def update(self, records: Sequence[Mapping]) -> None:
        """Show new records of a metrics file (in the order they were written)."""
        for record in records:
            if self._recent and record["step"] <= self._recent[-1][0]:
                self._recent.clear()  # a worker failed and steps are trained again
            self._recent.append((record["step"], record["time"]))
            self._first = self._first or record
            self._last = record
        if self._last is None:
            return
        if records:
            self._tell(event="record", record=self._last)
        step, total = self._last["step"], self._last["total"]
        if self._live:
            self._note = ""
            self._bar.update(self._task, description=self._name, completed=step, total=total, figures=self._figures())
        elif total and step * 10 // total > self._tenths_said and step < total:
            self._tenths_said = step * 10 // total
            self._say(f"{self._unit.removesuffix('s')} {step:,} of {total:,}, {self._figures()}{self._time_left()}")

    def _figures(self) -> str:
        parts = []
        loss = _loss(self._last["metrics"]) if self._last else None
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        rate = self._rate()
        if rate:
            parts.append(f"{rate:,.0f} {self._unit}/s" if rate >= 1000 else f"{rate:.3g} {self._unit}/s")
        return ", ".join(parts)

    def _rate(self) -> float | None:
        if len(self._recent) < 2:
            return None
        (first_step, first_time), (last_step, last_time) = self._recent[0], self._recent[-1]
        return (last_step - first_step) / (last_time - first_time) if last_time > first_time else None

    def _time_left(self) -> str:
        rate = self._rate()
        if not rate or self._last is None:
            return ""
        return f", {duration((self._last['total'] - self._last['step']) / rate)} left"

    def _summarise(self) -> None:
        assert self._last is not None
        assert self._first is not None
        figures = self._figures()
        took = duration(self._last["time"] - self._first["time"])
        self._say(f"{self._last['step']:,} {self._unit} in {took}{', ' + figures if figures else ''}")

    def _tell(self, **event: object) -> None:
        if self._events:
            with Path(self._events).open("a") as file:
                file.write(json.dumps(event) + "\n")

    def _say(self, text: str) -> None:
        if self._quiet:
            return
        self._console.print(f"{self._name}: {text}", highlight=False, markup=False, soft_wrap=True)


def _loss(metrics: Mapping[str, float]) -> float | None:
    """`loss` itself, or the first metric of that family (`loss/...`)."""
    for name, value in metrics.items():
        if name == "loss" or name.startswith("loss/"):
            return metrics.get("loss", value)
    return None
