"""How a stage is asked to stop: the first SIGTERM has its training end with a checkpoint, a second ends it at once.

A training looks for a file (`AYF_STOP_FILE` names one more); whoever runs stages turns the signal into that file.
A stage that trains nothing has no checkpoint to take: it ends at once, and goes on later with what it had finished.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ayf_core.files import found_below
from ayf_core.training.context import STOP_FILE

STOP = "stop"
"""Name of the file in a training's folder."""

STOPPED = 75
"""Exit status of a stage that stopped with a checkpoint: `EX_TEMPFAIL`, try again."""

_SAME_REQUEST_SECONDS = 2.0
"""A cluster and a dying dvc both pass the signal on: within this time it is still the first."""

STOP_WITHIN_SECONDS = 15.0
"""A training that has not stopped by then is ended: whoever sent the signal soon sends SIGKILL."""


class _Request:
    stop_file: Path | None = None
    asked_at: float | None = None
    trains = False
    end: threading.Timer | None = None


def on_sigterm(signum: int, frame: FrameType | None) -> None:
    """The handler. Raises SystemExit where no training runs, and at a second request."""
    now = time.monotonic()
    if _Request.asked_at is not None and now - _Request.asked_at < _SAME_REQUEST_SECONDS:
        return
    if _Request.stop_file is None or _Request.asked_at is not None:
        raise SystemExit(128 + signum)
    try:
        _Request.stop_file.touch()
    except OSError:  # a full disk
        raise SystemExit(128 + signum) from None
    _Request.asked_at = now
    _Request.end = threading.Timer(STOP_WITHIN_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    _Request.end.daemon = True
    _Request.end.start()


def heed_stop_file() -> None:
    """End this stage, as SIGTERM would, once the file that AYF_STOP_FILE names is there; a training looks itself."""
    named = os.environ.get(STOP_FILE)
    if named:
        threading.Thread(target=_end_once_there, args=(Path(named),), daemon=True, name="stop-file").start()


def _end_once_there(stop_file: Path) -> None:
    while not stop_file.exists():
        time.sleep(1.0)
    if not _Request.trains:
        os.kill(os.getpid(), signal.SIGTERM)


def handler_kept() -> Callable[[], None]:
    """A call that puts today's handler of SIGTERM back: Ray's driver takes it over when it starts."""
    before = signal.getsignal(signal.SIGTERM)

    def put_back() -> None:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

    return put_back


@contextmanager
def stoppable(folder: Path) -> Iterator[Path]:
    """While a training runs in `folder`: the file that asks it to stop."""
    stop_file = folder / STOP
    stop_file.unlink(missing_ok=True)
    _Request.stop_file, _Request.asked_at, _Request.trains = stop_file, None, True
    try:
        yield stop_file
    finally:
        _Request.stop_file = None
        has_stopped()


def has_stopped() -> None:
    """The training has come to its end: what is left to do, such as ending Ray, may take its time."""
    if _Request.end is not None:
        _Request.end.cancel()
        _Request.end = None


def is_stopping(folder: Path) -> bool:
    """Whether a training anywhere below `folder` was asked to stop."""
    return bool(found_below(folder, STOP))
