"""The next samples are read, and moved to the device, in a thread while the present ones are trained on.

A thread, and not the worker processes of torch's DataLoader: what is read is memory-mapped and gathered by code that
lets other threads run, and a process for each would have to be started, fed and ended for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Request = TypeVar("Request")

DEPTH = 2
"""So many reads are ahead: one that is ready, and one under way."""


class ReadAhead(Generic[Request]):
    """Named tensors on a device, one set for each request, in the order of the requests.

    Args:
        read: gives the tensors of a request, on the host; only the thread calls it.
        requests: are taken a few ahead of what is asked for.
        device: where the tensors go. To a GPU they are copied from pinned memory on a stream of their own, so that
            neither the host nor what the device is doing waits for the copy.
    """

    def __init__(
        self, read: Callable[[Request], Mapping[str, Tensor]], requests: Iterator[Request], device: torch.device
    ) -> None:
        self._read = read
        self._requests = requests
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: deque[Future[tuple[dict[str, Tensor], Any]]] = deque()
        for _ in range(DEPTH):
            self._ask()

    def take(self) -> dict[str, Tensor]:
        """The tensors of the next request. Raises whatever `read` raised for it."""
        tensors, copied = self._ahead.popleft().result()
        self._ask()
        if copied is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_event(copied)  # the device's own order: the host goes on
            for tensor in tensors.values():
                tensor.record_stream(here)
        return tensors

    def close(self) -> None:
        """End the thread; what was read ahead is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def _ask(self) -> None:
        for request in self._requests:
            self._ahead.append(self._thread.submit(self._fetch, request))
            return

    def _fetch(self, request: Request) -> tuple[dict[str, Tensor], Any]:
        tensors = self._read(request)
        if self._stream is None:
            return {name: tensor.to(self._device) for name, tensor in tensors.items()}, None
        with torch.cuda.stream(self._stream):
            moved = {name: t.pin_memory().to(self._device, non_blocking=True) for name, t in tensors.items()}
        return moved, self._stream.record_event()
