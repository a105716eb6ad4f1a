"""The job itself: what every task of a Slurm allocation runs, one task a node.

Task 0 brings up the head of a Ray and the driver (`dvc repro`, a sweep); the others bring up nodes that join it. What
may die, and what then happens:

    the driver, or a stage by a signal     a new attempt: Ray anew, the driver again, from the last checkpoint
    the head                               the same
    another node's Ray                     its task starts it again; Ray Train goes on with new workers
    task 0 itself                          another task has the job queued again
    a whole node                           Slurm requeues the job (or it goes on elastically: min_workers)
    everything, by pre-emption             Slurm warns by SIGUSR2: a checkpoint just in time, then the job is requeued
    everything, by `scancel`               SIGTERM, then SIGKILL: nothing is begun between the two

Only paths and plain settings are pickled. A requeued job reads everything else from the project's folder.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ayf_core.errors import AyfError
from ayf_core.files import write_whole
from pipelines.execution.attempt import ATTEMPT, Attempt, Heartbeat
from pipelines.execution.stopping import STOP_WITHIN_SECONDS
from pipelines.project import dvc_lock
from pipelines.slurm.ray_node import RayNode, ignore_warnings, reachable_address

ATTEMPTS = 10
"""So often the driver or the head may die in one run of the job before it gives up."""

BRING_UPS = 3
"""So often a Ray may end before it is up."""

SILENT_SECONDS = 90.0
"""After so long without a sign of life from task 0 (network file systems may show one a minute late) it is dead."""

_POLL_SECONDS = 0.5
_HOSTS_SECONDS = 45.0
_TEAR_DOWN_SECONDS = 15.0
_REQUEUE_SECONDS = 60.0
_END_SECONDS = 600.0


@dataclass
class ClusterJob:
    """A callable for submitit.

    Attributes:
        root: the project.
        folder: of this submission; shared by all nodes.
        command: the driver's, run in `root`.
        again: the same for an attempt after the first.
        runtime: path of the runtime file that stages read (a Ray at an address, `auto`).
        nodes, cpus, gpus: how many nodes, and what each gives to Ray.
        wait_seconds: for the nodes to join Ray.
        grace_seconds: between Slurm's warning and the end.
        elastic: whether a later attempt may do with fewer nodes.
    """

    root: Path
    folder: Path
    command: list[str]
    again: list[str]
    runtime: Path
    nodes: int
    cpus: int
    gpus: int
    wait_seconds: int
    grace_seconds: int
    elastic: bool = False

    # -------------------------------------------------------------------------------- what submitit calls

    def __call__(self) -> str:
        """Lead or follow; returns `done`. Exits with 1 where the driver failed for good."""
        self._attempt: Attempt | None = None
        self._driver: subprocess.Popen | None = None
        self._ray: RayNode | None = None
        self._ending = False
        signal.signal(signal.SIGTERM, self._on_sigterm)  # submitit would let it pass
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        return self._lead() if rank == 0 else self._follow(rank)

    def checkpoint(self) -> Any:
        """In task 0, when Slurm warns: stop with a checkpoint, then have the job queued again."""
        from submitit.helpers import DelayedSubmission

        say("Slurm ends this job soon: stopping with a checkpoint")
        deadline = time.monotonic() + max(1.0, self.grace_seconds - _TEAR_DOWN_SECONDS)
        if self._attempt is not None:
            self._attempt.ask_to_stop()
        while self._driver is not None and self._driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        in_time = self._driver is None or self._driver.poll() is not None
        say("stopped; queued again" if in_time else "not stopped in time: goes on from the last checkpoint")
        self._tear_down()
        if self._attempt is not None:
            self._attempt.end("done")
        return DelayedSubmission(self.resubmitted())

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        """Slurm ends the job and sends SIGKILL in some seconds: what began now would be cut off as it writes."""
        self._ending = True

    def resubmitted(self) -> ClusterJob:
        """The same job without what lives in this process."""
        return ClusterJob(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    # ------------------------------------------------------------------------------------------- task 0

    def _lead(self) -> str:
        for number in range(ATTEMPTS):
            attempt = self._attempt = self._attempt_folder(number)
            failure = ""
            try:
                self._bring_up(attempt, fewest=1 if self.elastic and number else None)
                outcome = self._drive(attempt, self.command if self._first(number) else self.again)
            except AyfError as error:
                # A Ray that ended while it came up may have timed out, or lost a port: that is worth another attempt.
                once_more = number < BRING_UPS - 1 and self._ray is not None and not self._ray.alive()
                outcome, failure = (None if once_more else 1), str(error)
                if once_more:
                    say(f"Ray did not come up: {failure}")
            except BaseException:
                attempt.end("done")
                raise
            finally:
                self._tear_down()
            again = outcome is None and not self._ending and number < ATTEMPTS - 1
            attempt.end("again" if again else "done")
            if outcome == 0:
                say("finished")
                return "done"
            if self._ending:
                _await_the_end()
            if outcome is not None:
                _give_up(failure or self._why(attempt, outcome))
            if again:
                say("the driver or the head of Ray died; once more, from the last checkpoint")
        _give_up(f"the driver or the head of Ray died {ATTEMPTS} times: see the log above")

    def _bring_up(self, attempt: Attempt, fewest: int | None) -> None:
        attempt.come(0, machine())
        attempt.start_heartbeat()
        hosts = attempt.wait_for_hosts(self.nodes, _HOSTS_SECONDS, fewest)
        one_machine = len(set(hosts.values())) < len(hosts)
        attempt.make_token()
        self._ray = self._node(attempt, 0, one_machine)
        self._ray.wait_until_up()
        attempt.publish(self._ray.address, one_machine)
        environment = self._environment(attempt, self._ray.address)
        command = [sys.executable, "-m", "pipelines.slurm.await_nodes", str(len(hosts)), str(self.wait_seconds)]
        joined = subprocess.run(command, env=environment, cwd=self.root, capture_output=True, text=True, check=False)
        if joined.returncode:
            raise AyfError((joined.stderr.strip() or "the nodes of Ray could not be counted").splitlines()[-1])
        say(joined.stdout.strip())

    def _drive(self, attempt: Attempt, command: list[str]) -> int | None:
        """The driver's exit status; None where it died rather than failed."""
        if self._ending:
            return None
        self._driver = self._start_driver(attempt, command)
        while (status := self._driver.poll()) is None:
            if self._ending:
                attempt.ask_to_stop()
            if self._ray is None or not self._ray.alive():
                self._driver.terminate()
                try:
                    self._driver.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    self._driver.kill()
                    self._driver.wait()
                return None
            time.sleep(_POLL_SECONDS)
        if self._ending:
            say("Slurm ends this job")
            attempt.await_stage(STOP_WITHIN_SECONDS)  # dvc dies at once, its stage first takes a checkpoint
        if status and self._head_is_lost():
            return None
        died = status < 0 or attempt.has_unfinished_stage()
        return None if died and not attempt.stop_file.exists() else status

    def _start_driver(self, attempt: Attempt, command: list[str]) -> subprocess.Popen:
        notes = [note.read_text() for note in self.folder.glob("attempt-*/driver")]
        drivers = {int(note) for note in notes if note.isdigit()}
        dvc_lock.mend(self.root, drivers)  # those of this job have ended, perhaps on another node
        driver = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(attempt, self._ray.address if self._ray else ""),
            stdin=subprocess.DEVNULL,
            preexec_fn=ignore_warnings,
        )
        write_whole(attempt.folder / "driver", str(driver.pid))
        return driver

    def _head_is_lost(self) -> bool:
        time.sleep(3 * _POLL_SECONDS)  # a stage may notice before `ray start` does
        return self._ray is None or not self._ray.alive()

    def _why(self, attempt: Attempt, status: int) -> str:
        failure = attempt.failure_file
        return failure.read_text().strip() if failure.exists() else f"`{' '.join(self.command)}` ended with {status}"

    def _first(self, number: int) -> bool:
        return number == 0 and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"

    # ------------------------------------------------------------------------------------- the other tasks

    def _follow(self, rank: int) -> str:
        for number in range(ATTEMPTS):
            attempt = self._attempt = self._attempt_folder(number)
            attempt.come(rank, machine())
            heartbeat = attempt.heartbeat()
            while attempt.over() is None:
                head = attempt.head()
                if heartbeat.silent_seconds() > SILENT_SECONDS:
                    self._queue_again()
                    return "requeued"
                if head is None or self._ending:
                    time.sleep(_POLL_SECONDS)
                    continue
                self._serve(attempt, rank, heartbeat, *head)
            if attempt.over() == "done":
                break
        return "done"

    def _queue_again(self) -> None:
        """Task 0 was killed: nobody would ever end this job."""
        say("task 0 is silent; the job is queued again")
        deadline = time.monotonic() + _REQUEUE_SECONDS  # Slurm's controller may be busy
        while subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False).returncode:
            if time.monotonic() > deadline:
                _give_up("Slurm did not queue the job again: submit it once more")
            time.sleep(5.0)

    def _serve(self, attempt: Attempt, rank: int, heartbeat: Heartbeat, address: str, one_machine: bool) -> None:
        """One life of this node's Ray: until it dies, the attempt is over or task 0 is silent."""
        self._ray = self._node(attempt, rank, one_machine, address)
        silent = False
        while self._ray.alive() and attempt.over() is None and not silent:
            time.sleep(_POLL_SECONDS)
            silent = heartbeat.silent_seconds() > SILENT_SECONDS
        if attempt.over() is None and not silent and not self._ending:
            say(f"Ray died on node {rank}; starting it again")
        self._ray.stop()
        time.sleep(_POLL_SECONDS)

    # -------------------------------------------------------------------------------------------- in common

    def _attempt_folder(self, number: int) -> Attempt:
        return Attempt(self.folder / f"attempt-{os.environ.get('SLURM_RESTART_COUNT', '0')}-{number}")

    def _node(self, attempt: Attempt, rank: int, one_machine: bool, address: str | None = None) -> RayNode:
        return RayNode(
            token_file=attempt.token_file,
            own_address=reachable_address(one_machine, rank),
            cpus=self.cpus,
            gpus=self.gpus,
            address=address,
            environment={"AYF_STOP_FILE": str(attempt.stop_file)},
            log=attempt.folder / f"ray-{rank}.log",
        )

    def _environment(self, attempt: Attempt, address: str) -> dict[str, str]:
        """The driver's: where Ray is, which runtime, where a stop is asked for."""
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        return inherited | {
            "AYF_RUNTIME": str(self.runtime),
            "AYF_STOP_FILE": str(attempt.stop_file),
            ATTEMPT: str(attempt.folder),
            "AYF_PROGRESS_FILE": str(self.folder / "progress.jsonl"),
            "RAY_ADDRESS": address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(attempt.token_file),
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }

    def _tear_down(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        if self._ray is not None:
            self._ray.stop()
            self._ray = None


def machine() -> str:
    """What tells this machine from another: several Slurm nodes may be one."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}-{boot.read_text().strip() if boot.exists() else ''}"


def say(text: str) -> None:
    """A line in the job's log."""
    print(f"[{socket.gethostname()}] {text}", flush=True)


def _await_the_end() -> NoReturn:
    """SIGKILL. A job that leaves by itself while it is pre-empted would not be queued again."""
    time.sleep(_END_SECONDS)
    _give_up(f"SIGTERM came {_END_SECONDS:.0f} s ago, and nothing after it")


def _give_up(why: str) -> NoReturn:
    """End the job as failed, with one line: submitit would print the traceback of an exception twice."""
    say(f"error: {why}")
    raise SystemExit(1)
