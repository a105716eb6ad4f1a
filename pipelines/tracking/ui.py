"""The MLflow pages over the project's store, served the light way: one worker, no job runner."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ayf_core.errors import AyfError

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig


def is_this_machine_only(host: str) -> bool:
    """Whether a server on this address can be reached from this machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


def warn_if_reachable(host: str, port: int, can: str) -> None:
    """Say what it means that others can reach a server that asks for no password."""
    if not is_this_machine_only(host):
        print(
            f"warning: whoever can reach {host}:{port} can {can}; there is no password. Let a firewall decide who that "
            f"is, or leave --host out and use a tunnel: ssh -L {port}:127.0.0.1:{port} HOST",
            file=sys.stderr,
        )


def store_to_serve(root: Path, runtime: RuntimeConfig, host: str, port: int) -> str:
    """The URI of the store the pages show; it is ready when this returns.

    Where runs are sent to a server at this very address, that is the one to start, on the project's store.

    Raises:
        AyfError: the runs are on another server.
    """
    from pipelines.tracking.store import ensure_store, server_address, tracking_uri

    configured = server_address(runtime)
    if configured is None:
        return tracking_uri(root, runtime)
    address = urlsplit(configured)
    if address.hostname in (host, "localhost", "127.0.0.1") and address.port == port:
        return ensure_store(root)
    raise AyfError(f"the runs are on the MLflow server {configured}: open that address in a browser")


def server_command(store: str, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that serve the store at the URI ``store``.

    One worker and no job runner: 2 processes instead of 15, and seconds instead of tens of seconds.
    """
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    return command, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def replace_process(command: Sequence[str], environment: dict[str, str]) -> None:
    """Replaces this process by ``command``, so that Ctrl-C and signals reach the server itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), environment)
