"""A connection to a Ray that others started."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from pipelines.execution.attempt import ATTEMPT
from pipelines.execution.own_ray import interpreter_of_workers

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

PROBE_SECONDS = 5.0
CONNECT_SECONDS = 30.0
"""A cluster that answers at all does so within a second; one that refuses the token may never say so."""

FORWARDED = ("PYTHONPATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "AYF_STOP_FILE")
"""Of the driver's environment; Ray's workers on other nodes have the one that `ray start` had there."""


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

    Args:
        runtime_env: of the workers; None is what they need on other nodes.

    Raises:
        AyfError: on entering, within a minute: nothing listens there, or it does not take this token.
    """

    def __init__(self, address: str, runtime_env: dict[str, Any] | None = None) -> None:
        self._address = address
        self._runtime_env = _for_other_nodes() if runtime_env is None else runtime_env

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

        def connect() -> None:
            try:
                ray.init(
                    address=self._address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=self._runtime_env,
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


def _for_other_nodes() -> dict[str, Any]:
    """What the workers take over from this process. The nodes of a job run its Python; other clusters have theirs."""
    interpreter = interpreter_of_workers() if ATTEMPT in os.environ else {}
    return {"env_vars": {name: os.environ[name] for name in FORWARDED if name in os.environ}, **interpreter}


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
