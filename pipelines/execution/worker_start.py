"""Looks, until the first worker of a Ray is there, whether workers can start at all, and says why they do not.

Ray itself starts a worker that died anew, again and again, for ten minutes, and then says that nothing was scheduled.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from ayf_core.errors import AyfError

SLOW_SECONDS = 120.0
"""A busy machine takes half a minute to import torch and Ray: then it is time for a word."""

SILENT_DEATHS = 3
"""So many workers may die without a word before it is given up: one may have been killed."""

_LOOK_SECONDS = 1.0
_LOG_LINE = re.compile(r"\[\d{4}-\d\d-\d\d |\s*$")
DEATH = "The process is dead, probably it crashed during start"


class WorkerStart:
    """A check to be called again and again while workers are waited for.

    Args:
        begun: whether a worker is there; nothing is looked at after that.
        say: shows a line to the person.
        logs: where this machine's Ray writes; None where it is another's.
        kept: where the logs can be read afterwards.
    """

    def __init__(
        self, begun: Callable[[], bool], say: Callable[[str], None], logs: Path | None, kept: Path | None = None
    ) -> None:
        self._begun = begun
        self._say = say
        self._logs = logs
        self._kept = kept or logs
        self._waiting: bool = True
        self._said = False
        self._since = self._looked = time.monotonic()

    def __call__(self) -> None:
        """Raises AyfError once it is known that no worker will come."""
        now = time.monotonic()
        if not self._waiting or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if self._begun():
            self._waiting = False
            return
        cause = cause_of_deaths(self._logs / "raylet.err") if self._logs else None
        if cause:
            raise AyfError(f"Ray's workers end as they start ({cause}): mend that; more in {self._kept}")
        if now - self._since > SLOW_SECONDS and not self._said:
            self._said = True
            where = f"Ray's logs are in {self._logs}" if self._logs else "look into the logs of that Ray"
            self._say(f"no worker has started within {SLOW_SECONDS:.0f} s (a busy machine, or no room): {where}")


def cause_of_deaths(log: Path) -> str | None:
    """What workers said that died before they could write logs of their own; None where none did."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    deaths = sum(DEATH in line for line in lines)
    if not deaths:
        return None
    words = [line.strip() for line in lines if not _LOG_LINE.match(line)]
    if not words and deaths < SILENT_DEATHS:
        return None
    return words[-1][:200] if words else f"{deaths} of them without a word"
