"""Repeats calls to an MLflow store that does not answer, up to a limit.

Training itself does not wait: `pipelines.execution.follower` keeps its points and offers them again.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar
from urllib.error import HTTPError, URLError

from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from dashboards.store import through_proxy
from pipelines.durations import duration
from pipelines.tracking.store import server_address

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

T = TypeVar("T")

AWAY = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED"})
"""Of MLflow's codes those that another attempt may not meet: no connection, a database that restarts, overload."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
FILE_RETRY_SECONDS = 30.0
"""For how long a call is repeated while others write the SQLite file."""


def may_pass(error: BaseException) -> bool:
    """Whether an error of a store is of the kind that time mends, not one that another attempt would repeat."""
    if isinstance(error, MlflowException):
        return error.error_code in AWAY
    if isinstance(error, RequestException):  # of an artefact
        return error.response is None or error.response.status_code >= 500
    if isinstance(error, ConnectionError | TimeoutError | URLError):
        return not isinstance(error, HTTPError)
    return error.__cause__ is not None and may_pass(error.__cause__)  # another package's words for one of these


class Retry:
    """Repeats calls to one store while it is away.

    The first call is repeated for `seconds` at most; after that every call is made once, until the store has answered
    again: a process with many calls to make does not wait at each of them.
    """

    def __init__(self, store: str, seconds: float, remedy: str = "start it") -> None:
        self.store = store
        self._remedy = remedy
        self._proxy = through_proxy(store)
        self.seconds = seconds
        self._given_up = False
        self._saying = threading.Lock()
        self._said = False

    def call(self, operation: Callable[[], T]) -> T:
        """What `operation` returns, once it does not fail for want of the store. It may be called more than once.

        Raises:
            AyfError: the store is still away after `seconds`.
        """
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                result = operation()
            except Exception as error:
                if not may_pass(error):
                    raise
                left = 0.0 if self._given_up else began + self.seconds - time.monotonic()
                if left <= 0:
                    self._given_up = True
                    raise AyfError(
                        f"MLflow ({self.store}) is away{self._proxy}, also after {self.seconds:.0f} s of waiting "
                        f"({first_line(error)[:200]}): {self._remedy}, run the same command again: it goes on from here"
                    ) from error
                waiting = f"waiting for it up to {duration(self.seconds)}"
                self._say(f"MLflow ({self.store}) is away{self._proxy}: {waiting}", away=True)
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._given_up = False
                self._say(f"MLflow ({self.store}) is back", away=False)
                return result

    def _say(self, text: str, *, away: bool) -> None:
        with self._saying:
            if away != self._said:
                self._said = away
                print(text, file=sys.stderr, flush=True)


def retry_for(runtime: RuntimeConfig) -> Retry:
    """This process's `Retry` of the runtime's store: of a server for as long as is set, of a file for less."""
    address = server_address(runtime)
    if address is not None:
        return _retry_with(address, runtime.tracking_retry_seconds)
    seconds = min(FILE_RETRY_SECONDS, runtime.tracking_retry_seconds)
    return _retry_with("the project's file", seconds, "see who holds it and whether its disk is full")


_retry_with = lru_cache(Retry)
