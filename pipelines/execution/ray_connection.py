"""The Ray that a stage or a sweep works on: the one it is already part of, an existing one, or one of its own."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from pipelines.execution.attempt import ATTEMPT
from pipelines.execution.own_ray import OwnRay, interpreter_of_workers, prepare_environment

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

PROBE_SECONDS = 5.0
CONNECT_SECONDS = 45.0
"""A cluster that answers at all does so within a second; one that refuses the token may never say so."""

REJOIN_SECONDS = 60.0

FORWARDED = ("PYTHONPATH", "OMP_NUM_THREADS", "AYF_STOP_FILE")
"""Of the driver's environment; Ray's workers on other nodes have the one that `ray start` had there."""


def ray_for(runtime: RuntimeConfig, cpus: int) -> AbstractContextManager[OwnRay | None]:
    """A context in which this process is connected to a Ray.

    A trial of a sweep is part of the sweep's already; `runtime.address` names an existing one; else one with `cpus`
    CPUs is started on this machine.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return nullcontext()
    return OwnRay(cpus) if runtime.address is None else ExistingRay(address_of(runtime))


def address_of(runtime: RuntimeConfig) -> str:
    """HOST:PORT of the Ray that `runtime.address` names.

    Raises:
        AyfError: it is `auto` and RAY_ADDRESS is not set, or it is no HOST:PORT.
    """
    address = runtime.address or ""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        if not address:
            raise AyfError(
                "the runtime's address is auto, but RAY_ADDRESS is not set: set it to HOST:PORT of the Ray head"
            )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise AyfError(f"the Ray address {address} is not HOST:PORT: mend `address` of the runtime, or RAY_ADDRESS")
    if address.startswith("ray://"):
        raise AyfError(f"{address} is the address of a Ray client server: give the head's own, HOST:PORT (often 6379)")
    return address


class ExistingRay:
    """A connection to a Ray that others started; leaving it ends nothing but the connection.

    Raises:
        AyfError: on entering, within a minute: nothing listens there, or it does not take this token.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise AyfError(
                f"no Ray answers at {self._address} ({reason}): is its head running, and reachable from here?"
            ) from error
        with _stderr_kept() as said:
            refused = self._connect()
        if refused is not None:
            reason = _reason(refused, said())
            raise AyfError(f"the Ray at {self._address} did not let this process in: {reason}") from refused

    def _connect(self) -> BaseException | None:
        """Connect; returns what went wrong. In a thread: a refused token may otherwise hold it for minutes."""
        import ray

        failed: list[BaseException] = []
        # The nodes of a job run this very Python; those of other clusters have theirs.
        interpreter = interpreter_of_workers() if ATTEMPT in os.environ else {}

        def connect() -> None:
            try:
                ray.init(
                    address=self._address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": forwarded(), **interpreter},
                )
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=connect, daemon=True, name="connect-ray")
        thread.start()
        thread.join(CONNECT_SECONDS)
        if thread.is_alive():
            return TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} s: is it of this version of Ray?")
        return failed[0] if failed else None

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()


def forwarded() -> dict[str, str]:
    """What the workers take over from this process's environment."""
    return {name: os.environ[name] for name in FORWARDED if name in os.environ}


def _reason(error: BaseException, said: str) -> str:
    if "Unauthenticated" in said or "InvalidAuthToken" in said + str(error):
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        place = f"{path} (RAY_AUTH_TOKEN_PATH)" if path else "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        return f"its token is another than the one in {place}; copy the cluster's"
    return first_line(error)


@contextmanager
def _stderr_kept() -> Iterator[Callable[[], str]]:
    """Ray's core tells why it was refused on the stderr of the process alone, once a second: to read, not to show."""
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)

        text = ""
        try:
            yield lambda: text
        finally:
            os.dup2(before, 2)
            os.close(before)
            kept.seek(0)
            text = kept.read().decode(errors="replace")


def require_room(runtime: RuntimeConfig, cpus_per_worker: int, gpus: bool) -> None:
    """Compare what the workers need with what the connected cluster has.

    Raises:
        AyfError: fewer workers fit than must run, with the arithmetic.
    """
    import ray

    need: dict[str, float] = {"CPU": cpus_per_worker}
    if gpus:
        need["GPU"] = 1
    fewest = (runtime.min_workers or runtime.workers) + runtime.teacher_workers
    # In a job, a node whose Ray has died gets another.
    deadline = time.monotonic() + (REJOIN_SECONDS if ATTEMPT in os.environ else 0.0)
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fit = sum(min(int(node.get(kind, 0) // amount) for kind, amount in need.items()) for node in nodes)
        if fit >= fewest or time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    if fit < fewest:
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in need.items())
        have = ", ".join(" and ".join(f"{node.get(kind, 0):g} {kind}" for kind in need) for node in nodes)
        raise AyfError(
            f"{fewest} workers of {each} each do not fit the Ray cluster: its {len(nodes)} nodes have {have}, "
            f"so {fit} fit; lower workers or threads_per_worker, or ask for more nodes"
        )


def size_of(runtime: RuntimeConfig) -> tuple[int, int]:
    """CPUs and GPUs of the Ray cluster that `runtime.address` names.

    Raises:
        AyfError: it cannot be connected to.
    """
    with ray_for(runtime, 0):
        return cluster_cpus(), cluster_gpus()


def cluster_cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def cluster_gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def require_shared(folder: Path) -> None:
    """Have every node of the connected cluster read a note that is written to `folder` here.

    Raises:
        AyfError: a node does not see it; names the node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    note, text = folder / "driver", secrets.token_hex(8)
    note.write_text(text)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        ray.remote(_sees)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(note, text)
        for node in nodes
    ]
    blind = [node["NodeManagerHostname"] for node, seen in zip(nodes, ray.get(answers), strict=True) if not seen]
    note.unlink()
    if blind:
        raise AyfError(
            f"{folder} is not shared: node {blind[0]} does not see what is written here; the project has to lie in a "
            "folder that all nodes share, under one path"
        )


def _sees(note: Path, text: str) -> bool:
    deadline = time.monotonic() + 15.0  # network file systems may show a new file late
    while time.monotonic() < deadline:
        try:
            if note.read_text() == text:
                return True
        except OSError:
            pass
        time.sleep(0.5)
    return False
