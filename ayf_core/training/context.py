"""What a training loop needs from whoever runs it: a place in the team, a folder, checkpoints and a log.

The loop knows this protocol and nothing else, so the same loop trains under Ray, in a notebook or under any other
launcher: `LocalContext` does for all of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as distributed

from ayf_core.files import write_whole
from ayf_core.training.checkpoint_folder import (
    CHECKPOINTS_KEPT,
    CheckpointFolder,
    checkpoint_name,
    checkpoint_step,
    naming_full_disk,
)
from ayf_core.training.checkpoints import State

STOP_FILE = "AYF_STOP_FILE"
"""Environment variable: once the file it names exists, trainings stop with a checkpoint."""

_LOOK_SECONDS = 0.5
"""Between two looks for a stop file: the folder may be on a network."""


class TrainingContext(Protocol):
    """One worker's view of the run it belongs to."""

    rank: int
    world_size: int
    device: torch.device
    folder: Path

    def latest_checkpoint(self) -> Path | None:
        """The newest sound checkpoint, a folder named `step_00001234`; None for a fresh start."""
        ...

    def save_checkpoint(self, step: int, state: State) -> None:
        """Keep a checkpoint of `step`: `state` is copied at once and written while training goes on.

        Every rank may call it; rank 0 writes, and the others may pass None.

        Raises:
            AyfError: the disk was full at the write before.
        """
        ...

    def wait(self) -> None:
        """Return when all checkpoints are written.

        Raises:
            AyfError: the disk was full.
        """
        ...

    def stop_asked(self) -> bool:
        """Whether this training shall stop with a checkpoint. Every rank calls it, and gets the same answer."""
        ...

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a finished step out of `total`. Every rank may call it; rank 0 writes."""
        ...


def tell_on_stderr(line: str) -> None:
    """Where there is nobody else to show a line to a person."""
    print(line, file=sys.stderr, flush=True)


class LocalContext:
    """A process with a folder: training with nothing but torch.

    `folder` receives `checkpoints/step_*`, `metrics.jsonl` and whatever the training function leaves there; a
    second context on the same folder goes on from the newest sound checkpoint.

    Args:
        rank, world_size: of several processes that share the folder and a process group of torch.distributed.
        keep: so many checkpoints; None keeps all.
        stop_files: a stop is asked for once any of them exists, or the one that AYF_STOP_FILE names.
        tell: shows a person a line that is also noted in the metrics file.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str | torch.device = "cpu",
        *,
        rank: int = 0,
        world_size: int = 1,
        keep: int | None = CHECKPOINTS_KEPT,
        stop_files: Sequence[Path] = (),
        tell: Callable[[str], None] = tell_on_stderr,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        named = os.environ.get(STOP_FILE)
        self._stop_files = (*stop_files, *([Path(named)] if named else []))
        self._look_at = 0.0
        self._stop_asked = False
        notes: list[str] = []
        self._checkpoints = CheckpointFolder(self.folder / "checkpoints", keep, notes.append)
        self._resumed = self._agreed_start()
        self._metrics: MetricsFile | None = None
        if self.rank == 0:
            resumed_step = checkpoint_step(self._resumed) if self._resumed else 0
            self._metrics = MetricsFile(self.folder / "metrics.jsonl", resumed_step)
            for line in notes:
                self._metrics.note(resumed_step, line)
                tell(line)

    def latest_checkpoint(self) -> Path | None:
        return self._checkpoints.newest() if self.rank == 0 else self._resumed

    def save_checkpoint(self, step: int, state: State) -> None:
        if self.rank == 0:
            self._checkpoints.save(step, state)

    def wait(self) -> None:
        self._checkpoints.wait()

    def stop_asked(self) -> bool:
        if not self._stop_files:
            return False
        if self.rank == 0 and not self._stop_asked and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            self._stop_asked = any(file.exists() for file in self._stop_files)
        return bool(self._from_rank_0(int(self._stop_asked)))

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.append(step, total, metrics)

    def _agreed_start(self) -> Path | None:
        """What rank 0 finds: the others may see a folder on a network later than it does."""
        found = self._checkpoints.newest() if self.rank == 0 else None
        step = self._from_rank_0(checkpoint_step(found) if found else -1)
        return self.folder / "checkpoints" / checkpoint_name(step) if step >= 0 else None

    def _from_rank_0(self, number: int) -> int:
        if self.world_size == 1:
            return number
        shared = torch.tensor([number], device=self.device)
        distributed.broadcast(shared, src=0)
        return int(shared)


class MetricsFile:
    """The story of a run, one JSON line a record: `{"step", "total", "time", "metrics"}`, and at times a `note`.

    Opening it for a run resumed at `resumed_step` cuts what an interrupted run had noted after its last
    checkpoint (those steps are about to be trained again), and a last line that was only half written.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line, record in read_metrics(path) if record["step"] <= resumed_step]
            write_whole(path, "".join(kept))

    def append(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._write({"step": int(step), "total": int(total), "time": time.time(), "metrics": values})

    def note(self, step: int, text: str) -> None:
        """A line for people about what happened at `step`, among the records."""
        self._write({"step": step, "total": 0, "time": time.time(), "metrics": {}, "note": text})

    def _write(self, record: dict) -> None:
        with naming_full_disk(self.path.parent), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[tuple[str, dict]]:
    """The complete lines of a metrics file, each with its record; a torn line ends the reading."""
    found = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        try:
            found.append((line, json.loads(line)))
        except json.JSONDecodeError:
            break
    return found


def read_notes(path: Path) -> list[str]:
    """The lines for people among the records."""
    return [record["note"] for _, record in read_metrics(path) if "note" in record]
