"""Calls that do not depend on each other, in threads of this process.

Two threads of torch that work on one call wait for each other at every layer, and for whatever else takes a core; two
calls with one thread each do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

from ayf_core.errors import AyfError

T = TypeVar("T")

Check = Callable[[], None]
"""To be called now and then by a call: raises where the others have failed or the stage is being stopped."""


class _Stopped(AyfError):
    """A call that ended because another failed."""


def side_by_side(call: Callable[[T, Check], None], items: Iterable[T], at_once: int) -> None:
    """Call `call(item, check)` for each item, so many at once, in the order of the items.

    Raises:
        whatever a call raises, once the others that run have noticed it.
    """
    if at_once == 1:
        for item in items:
            call(item, lambda: None)
        return
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise _Stopped("stopped, because another part of this stage was")

    def called(item: T) -> None:
        check()
        try:
            call(item, check)
        except BaseException:
            stop.set()  # here, before this thread takes the next item
            raise

    with ThreadPoolExecutor(at_once, thread_name_prefix="side-by-side") as pool:
        running = [pool.submit(called, item) for item in items]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException as error:  # Ctrl-C and SIGTERM come here too
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, _Stopped):
                raise _failure(running) from None
            raise


def _failure(ended: Iterable[Future[None]]) -> BaseException:
    """Why the others were stopped."""
    errors = [future.exception() for future in ended if not future.cancelled()]
    return next(error for error in errors if error is not None and not isinstance(error, _Stopped))
