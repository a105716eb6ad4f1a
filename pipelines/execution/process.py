"""The process of a stage, `python3 -m pipelines STAGE`: its signals, its parent, its exit status."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ayf_core.errors import AyfError, Preempted
from pipelines.environment import INTERRUPTED
from pipelines.execution.attempt import reported_to_job
from pipelines.execution.run import run_stage
from pipelines.execution.shared_ray import CHAIN, Chain
from pipelines.execution.stopping import STOPPED, heed_stop_file, on_sigterm
from pipelines.project import dvc_lock


def main(arguments: list[str]) -> int:
    """`python3 -m pipelines STAGE`: run a stage of the project around the working directory."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python3 -m pipelines STAGE     (a stage of dvc.yaml, such as distill@emd)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, on_sigterm)
    ctrl_c = _CtrlC()
    heed_stop_file()
    try:
        root = _project_root(Path.cwd())
        _end_with_parent(root)
        with reported_to_job():
            run_stage(root, arguments[0])
    except Preempted as stop:
        print(f"{arguments[0]}: {stop}", file=sys.stderr)
        return STOPPED
    except AyfError as error:
        if not ctrl_c.came:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except BaseException:
        if not ctrl_c.came:
            raise
    if ctrl_c.came:
        print(f"interrupted: run {arguments[0]} again and it goes on from its last checkpoint", file=sys.stderr)
        return INTERRUPTED
    return 0


class _CtrlC:
    """Raises KeyboardInterrupt at Ctrl-C, and knows it: packages that are being imported turn it into other errors."""

    def __init__(self) -> None:
        self.came = False
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for a job in the background
            signal.signal(signal.SIGINT, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def _project_root(start: Path) -> Path:
    return next((folder for folder in (start, *start.parents) if (folder / "dvc.yaml").exists()), start)


def _end_with_parent(root: Path) -> None:
    """End this stage when dvc is killed: an orphan would go on writing beside the rerun.

    Raises:
        AyfError: dvc was killed while this process started.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if "DVC_STAGE" not in os.environ:
        return
    import psutil

    # A shell between dvc and this process outlives dvc, so dvc itself is watched as well. It has the outputs locked.
    writing = dvc_lock.writers(root)
    try:
        above = [process for process in psutil.Process().parents() if process.pid in writing]
    except psutil.NoSuchProcess:  # one of them, in this instant
        above = []
    if writing and not above:
        raise AyfError(f"the dvc that started {os.environ['DVC_STAGE']} is gone: `dvc repro` goes on from here")
    if above:
        if CHAIN not in os.environ:  # `ayf repro` runs several dvc
            Chain(root, above[-1].pid).announce()
        threading.Thread(target=_watch, args=(above,), daemon=True, name="watch-dvc").start()


def _watch(processes: Iterable[Any]) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        while all(process.is_running() and process.status() != "zombie" for process in processes):
            time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
