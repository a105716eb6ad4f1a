"""Follows a training from outside: its metrics file, as it grows, to the screen and to the tracking store."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from pipelines.execution.progress import TrainingProgress
from pipelines.tracking.retry import Retry, may_pass

OnLog = Callable[[list[dict]], None]

_POLL_SECONDS = 0.25
_LOG_RETRY_SECONDS = 5.0


class Follower:
    """Follows a metrics file: one thread shows new records, another hands them to `on_log`, so that a store which is
    slow or away stops neither the training nor what is seen of it.

    Records that `on_log` did not take are kept and offered again; at the end that is repeated, as `retry` says.
    """

    def __init__(self, path: Path, on_log: OnLog, progress: TrainingProgress, retry: Retry) -> None:
        self._path = path
        self._on_log = on_log
        self._progress = progress
        self._retry = retry
        self._inode: int | None = None
        self._read = 0
        self._backlog: list[dict] = []
        self._retry_at = 0.0
        self._away = False
        self._changing = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(step,), daemon=True, name=name)
            for step, name in ((self._show, "follow-metrics"), (self._tell, "tell-metrics"))
        ]

    def __enter__(self) -> Follower:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._stop.is_set():  # the training did not finish: whoever goes on with it offers all of it again
            self._close()
            self._tell()

    def finish(self) -> None:
        """Hand over the rest, and wait where it is not taken. Raises AyfError if it was not."""
        self._close()
        try:
            self._retry.call(self._offer)
        except AyfError as error:
            raise AyfError(f"training finished, but not all its metrics are logged: {error}") from error
        except Exception as error:
            message = f"training finished, but its metrics could not be logged ({first_line(error)})"
            raise AyfError(f"{message}; run the same command again and they will be") from error

    def _close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._show()

    def _repeat(self, step: Callable[[], None]) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            step()

    def _show(self) -> None:
        records = self._new_records()
        for record in records:
            if "note" in record:
                self._progress.remark(record["note"])
        self._progress.update([record for record in records if "note" not in record])
        with self._changing:
            self._backlog += records

    def _tell(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        try:
            self._offer()
        except Exception as error:
            self._retry_at = time.monotonic() + _LOG_RETRY_SECONDS
            if may_pass(error) and not self._away:
                self._away = True
                self._progress.remark("MLflow is away: training goes on, its points are kept")
        else:
            if self._away:
                self._away = False
                self._progress.remark("MLflow is back and has every point")

    def _offer(self) -> None:
        """Hand over what is there. Raises what `on_log` raises; nothing is forgotten then."""
        with self._changing:
            offered = list(self._backlog)
        if offered:
            self._on_log(offered)
            with self._changing:
                del self._backlog[: len(offered)]

    def _new_records(self) -> list[dict]:
        """Records added since the last call; all of them if the file was replaced, as a resumed run does."""
        if not self._path.exists():
            return []
        inode = self._path.stat().st_ino
        if inode != self._inode:
            self._inode, self._read = inode, 0
        with self._path.open() as file:
            file.seek(self._read)
            text = file.read()
        complete = text[: text.rfind("\n") + 1]
        self._read += len(complete.encode())
        return [json.loads(line) for line in complete.splitlines()]
