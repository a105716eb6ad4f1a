"""How the tasks of a job find each other: small files in the job's folder, which all nodes share.

JOB/attempt-<restarts of the job>-<number>/     one bring-up of Ray; never used twice, so no task joins a dead head
    host-<rank>     a task has come; on which machine
    token           of this Ray, readable by its owner alone
    head            the address, once the head answers
    stop            a stop is asked for: trainings take a checkpoint and end
    over            this attempt has ended; what then: `again` or `done`
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ayf_core.errors import AyfError
from ayf_core.files import write_whole

ATTEMPT = "AYF_ATTEMPT"
"""Environment variable of the driver: the folder of its attempt."""

_POLL_SECONDS = 0.2
_HEARTBEAT_SECONDS = 5.0
_BLIND_SECONDS = 30.0


class Heartbeat:
    """Whether a file is still being touched, by this machine's own clock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: int | None = None
        self._changed = self._looked = time.monotonic()

    def silent_seconds(self) -> float:
        """Since the last change that was seen, less the time when this process could not look itself.

        It may have been suspended, with all of its job, or have waited for the file system.
        """
        try:
            touched = self._path.stat().st_mtime_ns
        except OSError:
            touched = None
        now = time.monotonic()
        if touched != self._seen:
            self._seen, self._changed = touched, now
        elif now - self._looked > _BLIND_SECONDS:
            self._changed += now - self._looked
        self._looked = now
        return now - self._changed


@dataclass(frozen=True)
class Attempt:
    """The folder of one bring-up of Ray."""

    folder: Path

    @property
    def stop_file(self) -> Path:
        return self.folder / "stop"

    def ask_to_stop(self) -> None:
        """Have the training of this attempt take a checkpoint and end."""
        with suppress(OSError):  # a full disk: it goes on from an earlier checkpoint
            self.stop_file.touch()

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def come(self, rank: int, host: str) -> None:
        """Say that this task is here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"host-{rank}", json.dumps({"host": host}))

    def hosts(self) -> dict[int, str]:
        """Which tasks have come, and where they run."""
        found = {}
        for note in self.folder.glob("host-*"):
            if note.name.removeprefix("host-").isdigit():
                found[int(note.name.removeprefix("host-"))] = json.loads(note.read_text())["host"]
        return found

    def wait_for_hosts(self, count: int, seconds: float, fewest: int | None = None) -> dict[int, str]:
        """Where all `count` tasks run; after `seconds`, `fewest` are enough.

        Raises:
            AyfError: fewer have come in time. A task that started but whose note is not here writes to another
                folder.
        """
        deadline = time.monotonic() + seconds
        while len(found := self.hosts()) < count:
            if time.monotonic() > deadline:
                if len(found) >= (fewest or count):
                    break
                missing = sorted(set(range(count)) - set(found))
                raise AyfError(
                    f"{count} nodes were asked for, {len(found)} came within {seconds:.0f} s (missing: task "
                    f"{', '.join(map(str, missing))}): either they did not start, or {self.folder.parent} is not a "
                    "folder that all nodes share"
                )
            time.sleep(_POLL_SECONDS)
        return found

    def start_heartbeat(self) -> None:
        """Keep touching a file, from a thread that dies with this process."""

        def touch() -> None:
            while self.over() is None:
                with suppress(OSError):
                    (self.folder / "heartbeat").touch()
                time.sleep(_HEARTBEAT_SECONDS)

        threading.Thread(target=touch, daemon=True, name="heartbeat").start()

    def heartbeat(self) -> Heartbeat:
        """For a task that waits for task 0: tells whether it still lives."""
        return Heartbeat(self.folder / "heartbeat")

    def make_token(self) -> None:
        """Write a fresh secret that only this user can read."""
        handle = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))

    def publish(self, address: str, one_machine: bool) -> None:
        """Say where the head listens, and whether all tasks run on one machine."""
        write_whole(self.folder / "head", json.dumps({"address": address, "one_machine": one_machine}))

    def head(self) -> tuple[str, bool] | None:
        """What was published, or None."""
        try:
            head = json.loads((self.folder / "head").read_text())
        except OSError:
            return None
        return head["address"], head["one_machine"]

    @property
    def failure_file(self) -> Path:
        return self.folder / "failure"

    def has_unfinished_stage(self) -> bool:
        """Whether a stage has begun and not come to its end: it runs, or it was killed."""
        return (self.folder / "running").exists()

    def await_stage(self, seconds: float) -> None:
        """Wait until no stage runs any more, at most so long."""
        deadline = time.monotonic() + seconds
        while self.has_unfinished_stage() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def end(self, what_then: str) -> None:
        """`again`: the tasks meet in the next attempt. `done`: they leave. The token is of no more use."""
        self.token_file.unlink(missing_ok=True)
        write_whole(self.folder / "over", what_then)

    def over(self) -> str | None:
        try:
            return (self.folder / "over").read_text()
        except OSError:
            return None


@contextmanager
def reported_to_job() -> Iterator[None]:
    """Around what a driver runs: inside a job, it learns whether this was killed, failed, or came to its end."""
    place = os.environ.get(ATTEMPT)
    if place is None:
        yield
        return
    attempt = Attempt(Path(place))
    running = attempt.folder / "running"
    running.touch()
    try:
        yield
    except AyfError as error:
        write_whole(attempt.failure_file, str(error))
        raise
    finally:
        running.unlink(missing_ok=True)
