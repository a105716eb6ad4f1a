"""The folder of a training's checkpoints, and the one way a checkpoint is committed: by its rename.

`step_00001234` is written beside under a hidden name, brought to the disk and renamed: a folder that has its final
name is complete, wherever it was written from, and nobody keeps a list. The newest is found by looking. Writing goes
on in the background while training does; what is damaged afterwards is found by its checksum and moved aside.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from ayf_core.errors import AyfError
from ayf_core.training.checkpoints import HostCopy, State, copy_to_host, verify_state, write_state

CHECKPOINTS_KEPT = 2
"""Two, so that a checkpoint that turns out to be damaged still has a predecessor."""

_CHECKPOINT = re.compile(r"step_(\d{8,})")


class CheckpointFolder:
    """Checkpoints of one training; one process at a time writes them.

    Args:
        folder: made when the first is written.
        keep: so many of the newest; None keeps all.
        tell: is given a line about each damaged checkpoint.
    """

    def __init__(self, folder: Path, keep: int | None, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._keep = keep
        self._tell = tell
        self._sound: set[str] = set()
        self._writing: _Writing | None = None

    def newest(self) -> Path | None:
        """The newest sound checkpoint; None for a fresh start. A damaged one is moved aside, with a line about it."""
        self.wait()
        damaged: list[str] = []
        newest: Path | None = None
        for checkpoint in reversed(complete_checkpoints(self._folder)):
            if self._is_sound(checkpoint):
                newest = checkpoint
                break
            damaged.append(f"{checkpoint.name} (kept as {_move_aside(checkpoint)})")
        if damaged:
            start = f"step {checkpoint_step(newest)}" if newest else "the beginning: there is no sound one"
            self._tell(f"damaged checkpoint: {', '.join(damaged)}; going on from {start}")
        return newest

    def _is_sound(self, checkpoint: Path) -> bool:
        if checkpoint.name not in self._sound:
            try:
                verify_state(checkpoint)
            except AyfError:
                return False
            self._sound.add(checkpoint.name)
        return True

    def save(self, step: int, state: State) -> None:
        """Copy `state` now, write it in the background. Waits for the one before it.

        Raises:
            AyfError: the disk was full when the one before was written.
        """
        self.wait()  # before the copy: never two of them in memory
        copy = copy_to_host(state)
        self._writing = _Writing(lambda: self._write(step, copy))

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            AyfError: the disk was full.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, copy: HostCopy) -> None:
        written = write_checkpoint(self._folder, step, lambda folder: write_state(folder, copy))
        self._sound.add(written.name)
        if self._keep is not None:
            for old in complete_checkpoints(self._folder)[: -self._keep]:
                remove_checkpoint(old)


class _Writing(threading.Thread):
    """A write in the background, whose error waits for whoever asks. It never outlives the process."""

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="write-checkpoint")
        self._write = write
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self._error = error

    def result(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error


def checkpoint_step(checkpoint: Path) -> int:
    """The step a checkpoint folder is named after. Raises AyfError for another name."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    if match is None:
        raise AyfError(f"{checkpoint} is not a checkpoint: its name is not step_ and eight digits")
    return int(match[1])


def checkpoint_name(step: int) -> str:
    """`step_00001234`."""
    return f"step_{step:08d}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder` that were finished, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside, bring it to the disk, give it its name; returns `folder/step_<step>`.

    A kill at any instant leaves either no `step_<step>` or a complete one.

    Raises:
        AyfError: the disk is full.
    """
    final = folder / checkpoint_name(step)
    # Of its own name: a worker that is believed dead, on a node cut off, may still be writing its own.
    beside = folder / f".{final.name}.{secrets.token_hex(4)}.partial"
    with naming_full_disk(folder):
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


def _move_aside(checkpoint: Path) -> str:
    """Give a damaged checkpoint a name that is none; nothing is deleted. Returns the name."""
    names = (f"{checkpoint.name}.damaged{suffix}" for suffix in ("", *(f".{i}" for i in range(2, 1000))))
    name = next(name for name in names if not checkpoint.with_name(name).exists())
    os.rename(checkpoint, checkpoint.with_name(name))
    return name


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


class naming_full_disk:
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
