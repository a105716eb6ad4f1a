"""Proxies: servers of this machine are reached without one; which variable leads to one before other servers."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "127.0.0.0/8")


def reach_local_servers_directly() -> None:
    """Except this machine's own addresses from the proxies of the environment, for this process and its children.

    A proxy cannot reach them: a server that runs here would seem to be down. What NO_PROXY holds already stays.
    """
    names = ("no_proxy", "NO_PROXY")
    known = [entry.strip() for name in names for entry in os.environ.get(name, "").split(",")]
    if "*" in known or not any(name.lower().endswith("_proxy") and name not in names for name in os.environ):
        return
    direct = ",".join(dict.fromkeys(entry for entry in (*known, *LOCAL, socket.gethostname()) if entry))
    # Programs read one or the other, some only the first that is set.
    os.environ.update(dict.fromkeys(names, direct))


def proxy_variable(address: str) -> str | None:
    """The environment variable that sends requests for an address (http://..., https://...) through a proxy, if any."""
    parts = urlsplit(address)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    names = (f"{parts.scheme}_proxy", "all_proxy")
    return next((n for name in names for n in (name, name.upper()) if os.environ.get(n)), None)
