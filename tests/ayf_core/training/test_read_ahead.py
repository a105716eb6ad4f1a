"""Reading ahead: the same tensors in the same order, errors where they belong, an end without a trace."""

import threading
import time

import pytest
import torch

from ayf_core.training.read_ahead import DEPTH, ReadAhead

CPU = torch.device("cpu")


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def squares(request):
    return {"square": torch.tensor([request**2])}


def test_tensors_come_in_the_order_of_the_requests():
    ahead = ReadAhead(squares, iter(range(20)), CPU)
    assert [ahead.take()["square"].item() for _ in range(20)] == [i**2 for i in range(20)]
    ahead.close()


def test_the_next_are_read_before_they_are_asked_for_and_no_more_than_that():
    started = []
    second = threading.Event()

    def read(request):
        started.append(request)
        if request == DEPTH:
            second.set()
        return squares(request)

    ahead = ReadAhead(read, iter(range(20)), CPU)
    ahead.take()
    assert second.wait(10), "nothing was read ahead"
    time.sleep(0.05)
    assert started == list(range(DEPTH + 1))
    ahead.close()


def test_an_error_reaches_the_one_who_asks_at_its_place():
    def read(request):
        if request == 1:
            raise OSError("the disk is gone")
        return squares(request)

    ahead = ReadAhead(read, iter(range(20)), CPU)
    assert ahead.take()["square"].item() == 0
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take()
    ahead.close()


def test_closing_ends_the_thread_though_much_was_asked_for():
    ahead = ReadAhead(squares, iter(range(10**9)), CPU)
    ahead.take()
    assert reader_threads()
    ahead.close()
    assert not reader_threads()
    ahead.close()


def test_one_that_is_forgotten_leaves_no_thread():
    ahead = ReadAhead(squares, iter(range(10**9)), CPU)
    (thread,) = reader_threads()
    ahead.take()
    del ahead
    thread.join(10)
    assert not thread.is_alive()
