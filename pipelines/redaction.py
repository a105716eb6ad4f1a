"""Keeps what is secret out of what is told: credentials in addresses, tokens of the environment."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit, urlunsplit

HIDDEN = "***"

_CREDENTIALS = re.compile(r"(?<=://)[^/\s?#@'\"]+@")
_PARAMETER = re.compile(r"(?i)([?&;][\w.-]*(?:token|secret|password|passwd|signature|api_?key|access_?key)=)[^&\s'\"]+")
_SECRET_NAME = re.compile(r"(?i)(token|secret|password|passwd|pgpass|credentials?|(api|access|private|secret)_?key)$")
_SHORTEST = 6
"""Shorter values would blank out common words."""


def without_secrets(text: str) -> str:
    """The text without credentials in addresses, secret parameters of addresses, and values of secret variables."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    text = _CREDENTIALS.sub(f"{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


def apart(uri: str) -> tuple[str, str | None, str | None]:
    """An address without credentials, and the user and the password that it had."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri, None, None
    host = parts.netloc.rpartition("@")[2]
    bare = urlunsplit(parts._replace(netloc=host))
    return bare, unquote(parts.username or "") or None, unquote(parts.password or "") or None
