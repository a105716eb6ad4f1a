"""Runs the chain as `dvc repro` does, independent stages side by side.

DVC keeps everything: what depends on what, what has changed, `dvc.lock`, its cache. This module asks it for the order
and has it run each stage that is ready, `dvc repro --single-item STAGE` in a process forked from this one. While a
stage works, DVC lets go of the project's lock, so the others go on; what it notes, it notes under that lock.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from pipelines.execution.shared_ray import Chain
from pipelines.execution.shares import has_room
from pipelines.project import dvc_lock

STOP_FILE = "AYF_STOP_FILE"
"""As in `ayf_core.training.context`, which imports torch: where nothing changed, nothing has to."""

_LOOK_SECONDS = 0.2

Say = Callable[[str], None]


@dataclass
class Plan:
    """What is to run, in DVC's order.

    Attributes:
        stages: DVC's, by name.
        needs: of each, the stages before it.
    """

    stages: dict[str, Any]
    needs: dict[str, set[str]]
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._rows: dict[str, int] = {}  # of each stage, the length of the longest row of stages that wait for it
        for name in reversed(self.stages):
            self._rows[name] = 1 + max(
                (self._rows[other] for other in self._rows if name in self.needs[other]), default=0
            )

    def ready(self, taken: Iterable[str]) -> list[str]:
        """Stages whose inputs are made, without those `taken`; the ones that most others wait for first."""
        free = [name for name in self.stages if name not in self.done and name not in taken]
        able = [name for name in free if self.needs[name] <= self.done]
        return sorted(able, key=lambda name: -self._rows[name])


def repro(root: Path, targets: Iterable[str], *, at_once: int, force: bool, say: Say) -> int:
    """Run what changed of the whole chain, or of what `targets` need; returns how many stages ran.

    The first failure begins nothing new, and lets end what runs. Ctrl-C, SIGTERM and a closed terminal stop the
    stages with a checkpoint; a second Ctrl-C ends them at once.

    Raises:
        AyfError: a stage failed, or DVC cannot read the project.
        Stopped: somebody asked for it.
    """
    dvc_lock.mend(root)
    with _Stop(root) as stop, _of_dvc(root) as repository:
        return _Runner(root, repository, at_once, force, say, stop).run(_plan(repository, list(targets)))


class Stopped(AyfError):
    """The chain was asked to stop by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__("stopped: `ayf repro` goes on from here")
        self.signum = signum


@dataclass
class _Runner:
    root: Path
    repository: Any
    at_once: int
    force: bool
    say: Say
    stop: _Stop
    running: dict[str, BaseProcess] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    ran: int = 0

    def run(self, plan: Plan) -> int:
        try:
            self._start(plan)
            while self.running:
                wait([process.sentinel for process in self.running.values()], timeout=_LOOK_SECONDS)
                ended = self._reap(plan)
                self.stop.look()
                if self.stop.asked_twice:
                    self._end()
                elif ended or len(self.running) < self.at_once:
                    self._start(plan)
        except BaseException:
            self._end()
            raise
        if self.stop.asked:
            raise Stopped(self.stop.asked)
        if self.failed:
            left = [name for name in plan.stages if name not in plan.done and name not in self.failed]
            not_run = f"; not run: {', '.join(left)}" if left else ""
            raise AyfError(f"{', '.join(self.failed)} failed{not_run}")
        return self.ran

    def _start(self, plan: Plan) -> None:
        """Fill the free places. What has not changed takes none; what has is known, and not looked at again."""
        if self.failed or self.stop.asked:
            return
        self._look(plan)
        for name in plan.ready(self.running):
            if len(self.running) < self.at_once and (not self.running or has_room()):
                self.say(f"Running stage '{name}'")
                self.running[name] = self._begin(name)

    def _look(self, plan: Plan) -> None:
        """Pass over what is ready and has not changed, one stage after another."""
        from dvc.exceptions import DvcException
        from dvc.repo import lock_repo

        if self.force or not set(plan.ready(self.running)) - self.changed:
            return
        name = ""
        try:
            with lock_repo(self.repository):
                while names := [name for name in plan.ready(self.running) if name not in self.changed]:
                    for name in names:
                        if plan.stages[name].changed():
                            self.changed.add(name)
                        else:
                            self.say(f"Stage '{name}' didn't change, skipping")
                            plan.done.add(name)
        except DvcException as error:
            raise AyfError(f"DVC cannot tell whether {name} changed: {_reason(error)}") from error

    def _begin(self, name: str) -> BaseProcess:
        from pipelines.execution.progress import PROGRESS

        environment = {STOP_FILE: str(self.stop.file)} | ({PROGRESS: "lines"} if self.at_once > 1 else {})
        chain = Chain(self.root, os.getpid(), self.at_once)
        sys.stdout.flush()
        # Forked, so that DVC is not imported again: this process has one thread.
        process = multiprocessing.get_context("fork").Process(
            target=_reproduce, args=(chain, name, self.force, environment), name=name
        )
        process.start()
        return process

    def _reap(self, plan: Plan) -> bool:
        """Whether stages have ended."""
        before = len(self.running)
        for name, process in list(self.running.items()):
            if process.is_alive():
                continue
            process.join()
            del self.running[name]
            if process.exitcode:
                self.failed.append(name)
            else:
                self.ran += 1
                plan.done.add(name)
        return len(self.running) < before

    def _end(self) -> None:
        for process in self.running.values():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)


# ----------------------------------------------------------------------------------------------- signals


class _Stop:
    """Turns signals into the file that trainings look for. A context; its handlers are gone afterwards.

    Attributes:
        asked: the first signal's number, 0 before it.
        asked_twice: whether another came.
    """

    def __init__(self, root: Path) -> None:
        self.file = root / "runs" / f"stop-{os.getpid()}"
        self.asked = 0
        self.asked_twice = False
        self._outer = os.environ.get(STOP_FILE)

    def __enter__(self) -> _Stop:
        self.file.parent.mkdir(exist_ok=True)
        self.file.unlink(missing_ok=True)
        self._before = {}
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # as for a job in the background, or with nohup
                self._before[signum] = signal.signal(signum, self._ask)
        return self

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked_twice = bool(self.asked)
        self.asked = self.asked or signum
        self.file.touch()

    def look(self) -> None:
        """Whoever runs this may have a stop file of its own."""
        if not self.asked and self._outer and Path(self._outer).exists():
            self._ask(signal.SIGTERM, None)

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self.file.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- what DVC is asked


def _of_dvc(root: Path) -> Any:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)  # it sets it itself when it is imported
    try:
        return Repo(str(root), _wait_for_lock=True)
    except DvcException as error:
        raise AyfError(f"{root} is no project of DVC's ({first_line(error)}): `dvc init` makes it one") from error


def _plan(repository: Any, targets: list[str]) -> Plan:
    """Raises AyfError for a target that is not there, or a dvc.yaml that DVC cannot read."""
    from dvc.exceptions import DvcException
    from dvc.repo import lock_repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    try:
        with lock_repo(repository):
            graph = get_active_graph(repository.index.graph)
            steps = plan_repro(graph, collect_stages(repository, targets or ["dvc.yaml"]))
    except DvcException as error:
        raise AyfError(first_line(error)) from error
    names = {stage: stage.addressing for stage in steps}
    needs = {names[stage]: {names[other] for other in graph.successors(stage) if other in names} for stage in steps}
    return Plan({name: stage for stage, name in names.items()}, needs)


def _reason(error: BaseException) -> str:
    """DVC's words up to its advice, in one line: who holds a path stands in the second."""
    return " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__


def _reproduce(chain: Chain, name: str, force: bool, environment: Mapping[str, str]) -> None:
    """One stage, in a process of its own; exits with 1 where it failed, with the reason unless the stage gave it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageCmdFailedError

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    os.setsid()  # a terminal's Ctrl-C is for the process above, which has the stages take a checkpoint
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a stage looks after its dvc
    if os.getppid() != chain.process:
        return
    os.environ.update(environment)
    chain.announce()
    sys.argv = ["dvc", "repro", "--single-item", name]  # DVC tells others by these words who holds a path
    try:
        with Repo(str(chain.root), _wait_for_lock=True) as repository:
            repository.reproduce(name, single_item=True, force=force)
    except DvcException as error:
        reason = error.__cause__ or error
        if not isinstance(reason, StageCmdFailedError):
            print(f"error: {name}: {_reason(reason)}", file=sys.stderr)
        raise SystemExit(1) from None
