"""This machine: its cores, GPUs and memory, and its ports: whether one is free, which to take for our own servers."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from pathlib import Path

from ayf_core.errors import AyfError

_LOWEST = 10_000
"""Below are the ports of well-known services."""


def core_count() -> int:
    """Cores that this process may use: a container or `taskset` may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this process may use: a container may leave it less than the machine has."""
    import psutil

    total = psutil.virtual_memory().total
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            total = min(total, int(limit.read_text()))
        except (OSError, ValueError):  # not Linux, or no limit: "max"
            continue
    return total


def has_gpu() -> bool:
    """Whether a GPU's driver is here, told without importing torch."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``host:port`` now.

    Raises:
        AyfError: the host is not one of this machine's, or the port may not be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise AyfError(f"unknown host {host}: use 127.0.0.1, or 0.0.0.0 for every address") from error
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: a connection that is still being closed does not count as busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise AyfError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host"
            ) from error
    return True


def next_free_port(host: str, port: int) -> int:
    """The first free port above ``port``."""
    for candidate in range(port + 1, min(port + 200, 65536)):
        if port_is_free(host, candidate):
            return candidate
    raise AyfError(f"no free port from {port} to {port + 199} on {host}: choose another with --port")


def require_free_port(host: str, port: int, command: str = "ayf ui") -> None:
    """Raises AyfError, naming the command with the next free port, where the wanted one is taken."""
    if not port_is_free(host, port):
        raise AyfError(f"port {port} on {host} is in use: try `{command} --port {next_free_port(host, port)}`")


def free_ports(count: int) -> range:
    """Neighbouring ports that nobody listens on now, at random.

    The system gives none of them to an outgoing connection, so that they are still free seconds later, also while a
    server that is started again is down.

    Raises:
        AyfError: there are none.
    """
    top = _first_for_outgoing_connections()
    if top < _LOWEST + 1000:
        top = 65_536
    for _ in range(1000):
        first = _LOWEST + secrets.randbelow(top - _LOWEST - count)
        ports = range(first, first + count)
        if all(port_is_free("0.0.0.0", port) for port in ports):
            return ports
    raise AyfError(f"no {count} free ports in a row between {_LOWEST} and {top}: see what listens on this machine")


def _first_for_outgoing_connections() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):  # not Linux
        return 32_768
