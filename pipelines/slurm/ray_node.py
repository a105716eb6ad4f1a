"""One node of a Ray cluster as a child of this process: started so that it survives Slurm's warning signals.

`ray start` leaves SIGUSR2 at its default in all daemons, where it kills them, and Slurm sends it to every process of
a step: it is ignored before they start, which they inherit.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ayf_core.errors import AyfError
from pipelines.execution.own_ray import RAY_SETTINGS
from pipelines.machine import free_ports

OBJECT_STORE_BYTES = 200 * 2**20
"""Little passes through it: tasks share files, not objects."""

START_SECONDS = 120.0


class RayNode:
    """The head, or a node that joins one.

    Args:
        token_file: the cluster's secret.
        address: of the head to join; None makes this the head.
        own_address: the IP address that other nodes reach this one by.
        environment: of the daemons and of every worker they start.
        log: where the daemons' own words go.
        wrapper: a command that runs `ray start` in surroundings of its own, such as a container's.
    """

    def __init__(
        self,
        *,
        token_file: Path,
        own_address: str,
        cpus: int,
        gpus: int,
        address: str | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        ports = free_ports(7)
        self.address = address or f"{own_address}:{ports[0]}"
        # Socket paths are limited to 107 bytes: short, and on this node.
        self._folder = Path(tempfile.mkdtemp(prefix=f"ayf-ray-{os.getpid()}-", dir="/tmp"))
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
        command += [f"--node-ip-address={own_address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={self._folder}"]
        command += [f"--node-manager-port={ports[1]}", f"--object-manager-port={ports[2]}"]
        command += [f"--dashboard-agent-listen-port={ports[3]}", f"--dashboard-agent-grpc-port={ports[4]}"]
        command += [f"--runtime-env-agent-port={ports[5]}", "--disable-usage-stats"]
        command += ["--include-log-monitor=false"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]  # whichever are free: jobs may share a node
        if address is None:
            command += ["--head", f"--port={ports[0]}", "--include-dashboard=false", "--no-monitor"]
            command += [f"--ray-client-server-port={ports[6]}"]  # cannot be left out; asks for the token as well
        else:
            command += [f"--address={address}"]
        variables = {**os.environ, **RAY_SETTINGS, **(environment or {})}
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_ADDRESS": self.address}
        variables.pop("RAY_AUTH_TOKEN", None)
        self._log = log
        with open(log or os.devnull, "a") as output:
            self._process = subprocess.Popen(
                [*wrapper, *command],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=ignore_warnings,
            )

    def alive(self) -> bool:
        """Whether `ray start --block` still runs: it ends when one of its daemons does."""
        return self._process.poll() is None

    def wait_until_up(self) -> None:
        """Wait until the head listens.

        Raises:
            AyfError: it ended, or takes too long; with its last words.
        """
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.alive():
            try:
                socket.create_connection((host, int(port)), timeout=1.0).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AyfError(f"Ray did not start on {socket.gethostname()}: {self._last_words()}")

    def stop(self) -> None:
        """End this node's own processes, and nobody else's."""
        mine = self._family()
        self._process.terminate()
        try:
            self._process.wait(timeout=4)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in mine:
            try:
                process.kill()
            except psutil.Error:
                continue
        shutil.rmtree(self._folder, ignore_errors=True)

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log else []
        return f"{lines[-1] if lines else 'no output'} (more in {self._log})"


def ignore_warnings() -> None:
    """In the child, before it becomes another program: warnings are the parent's to act on; die with the parent."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def reachable_address(one_machine: bool, rank: int) -> str:
    """This node's IP address for the other nodes; where they are one machine, a loopback address of its own."""
    if one_machine:
        return f"127.0.1.{rank + 1}"
    for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET):
        address = str(info[4][0])
        if not address.startswith("127."):
            return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # a name that only means this machine itself
        probe.connect(("192.0.2.1", 9))  # sends nothing: the system only chooses the way out
        return str(probe.getsockname()[0])
