"""What a training loop needs from whoever runs it: a place in the team, a folder, checkpoints and a log.

The loop knows this protocol and nothing else, so the same loop trains under Ray, in a notebook
(`LocalContext`) or under any other launcher. Checkpoints are written beside and renamed: a folder that has
its final name is complete.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from ayf_core.errors import AyfError

CHECKPOINTS_KEPT = 2
"""Two, so that a checkpoint that turns out to be damaged still has a predecessor."""

_CHECKPOINT = re.compile(r"step_(\d{8,})")


class TrainingContext(Protocol):
    """One worker's view of the run it belongs to."""

    rank: int
    world_size: int
    device: torch.device
    folder: Path

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, a folder named `step_00001234`; None for a fresh start."""
        ...

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint of `step`. Every rank calls it; `write(folder)` runs on rank 0 only.

        Raises AyfError when the disk is full.
        """
        ...

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a finished step out of `total`. Every rank may call it; rank 0 writes."""
        ...


class LocalContext:
    """A single process with a folder: training with nothing but torch.

    `folder` receives `checkpoints/step_*`, `metrics.jsonl` and whatever the training function leaves there; a
    second context on the same folder goes on from the newest checkpoint.
    """

    rank = 0
    world_size = 1

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder).absolute()
        self.device = torch.device(device)
        self._checkpoints = self.folder / "checkpoints"
        resumed = self.latest_checkpoint()
        self._metrics = MetricsFile(self.folder / "metrics.jsonl", checkpoint_step(resumed) if resumed else 0)

    def latest_checkpoint(self) -> Path | None:
        found = complete_checkpoints(self._checkpoints)
        return found[-1] if found else None

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        write_checkpoint(self._checkpoints, step, write)
        for old in complete_checkpoints(self._checkpoints)[:-CHECKPOINTS_KEPT]:
            remove_checkpoint(old)

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self._metrics.append(step, total, metrics)


class MetricsFile:
    """The story of a run, one JSON line a record: `{"step", "total", "time", "metrics"}`.

    Opening it for a run resumed at `resumed_step` cuts what an interrupted run had noted after its last
    checkpoint (those steps are about to be trained again), and a last line that was only half written.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line, record in read_metrics(path) if record["step"] <= resumed_step]
            beside = path.with_name(path.name + ".partial")
            beside.write_text("".join(kept))
            os.replace(beside, path)

    def append(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        record = {"step": int(step), "total": int(total), "time": time.time(), "metrics": values}
        with _naming_full_disk(self.path.parent), self.path.open("a") as file:
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


def checkpoint_step(checkpoint: Path) -> int:
    """The step a checkpoint folder is named after. Raises AyfError for another name."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    if match is None:
        raise AyfError(f"{checkpoint} is not a checkpoint: its name is not step_ and eight digits")
    return int(match[1])


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder` that were finished, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside, bring it to the disk, give it its name; returns `folder/step_<step>`.

    A kill at any instant leaves either no `step_<step>` or a complete one. Raises AyfError when the disk is
    full.
    """
    final = folder / f"step_{step:08d}"
    beside = folder / f".{final.name}.partial"
    with _naming_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        beside.mkdir()
        try:
            write(beside)
            _sync(beside)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if final.exists():  # the same step trained again, after a resume from an older checkpoint
            remove_checkpoint(final)
        os.rename(beside, final)
        _sync_entry(folder)
    return final


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint so that a kill half-way does not leave one that looks complete."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what a killed writer left; safe because one process at a time writes a run's checkpoints."""
    for path in folder.iterdir():
        if path.name.startswith(".step_"):
            shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring all below `folder` to the disk before the rename makes it count."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync_entry(Path(parent, name))
        _sync_entry(Path(parent))


def _sync_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _naming_full_disk:
    """Turn "no space left", in whatever dress a library gives it, into a line that names the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and self._is_full(error):
            message = f"no space left on the disk of {self.folder}: free some and run the same command again"
            raise AyfError(f"{message}; it goes on from the last checkpoint") from error

    def _is_full(self, error: Exception) -> bool:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, AyfError):
            return False
        if "No space left" in str(error):  # safetensors wraps the operating system's error in its own
            return True
        # Some writers say only that writing failed
        return "failed writing" in str(error) and shutil.disk_usage(self.folder).free < 2**24
