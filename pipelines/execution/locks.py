"""The lock of a folder that one process writes; the system frees it however the process ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ayf_core.errors import AyfError
from pipelines.execution.stopping import is_stopping

STOPPING_SECONDS = 20.0
"""How long a stage waits for the process before it, which was asked to stop, to take its checkpoint and end."""
ENDING_SECONDS = 3.0
"""How long for any other: its dvc may have been killed a moment ago."""


@contextmanager
def only_writer(folder: Path, name: str) -> Iterator[IO[str]]:
    """Hold the lock of a folder that one process writes; the system frees it however the process ends.

    Raises:
        AyfError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            free = _locked_within(file, ENDING_SECONDS)
            if not free and not (is_stopping(folder) and _locked_within(file, STOPPING_SECONDS)):
                raise AyfError(f"{name} is being run already (process {holder}): wait for it or end it") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file


def _locked_within(file: IO[str], seconds: float) -> bool:
    """Whether a process that is about to end let go of the lock in time."""
    patience = time.monotonic() + seconds
    while time.monotonic() < patience:
        time.sleep(0.1)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        return True
    return False
