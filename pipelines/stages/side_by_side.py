"""Calls that do not depend on each other, in threads of this process.

Two threads of torch that work on one call wait for each other at every layer, and for whatever else takes a core; two
calls with one thread each do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from ayf_core.errors import AyfError

T = TypeVar("T")

Check = Callable[[], None]
"""To be called now and then by a call: raises where the others have failed or the stage is being stopped."""


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
            raise AyfError("stopped, because another part of this stage was")

    with ThreadPoolExecutor(at_once, thread_name_prefix="side-by-side") as pool:
        running = [pool.submit(call, item, check) for item in items]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:  # Ctrl-C and SIGTERM come here too
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
