"""Calls in threads of a stage: all are made, and a failure or a stop does not wait for those that have not begun."""

import threading

import pytest

from ayf_core.errors import AyfError
from pipelines.stages.side_by_side import Check, side_by_side


@pytest.mark.parametrize("at_once", [1, 3])
def test_every_item_is_called_once(at_once: int) -> None:
    called: list[int] = []
    side_by_side(lambda item, check: called.append(item), range(10), at_once)
    assert sorted(called) == list(range(10))


def test_as_many_calls_run_as_were_asked_for() -> None:
    meeting = threading.Barrier(3, timeout=20)
    side_by_side(lambda item, check: [meeting.wait()], range(3), 3)


def test_a_failure_stops_the_others_at_their_next_check() -> None:
    both = threading.Barrier(2, timeout=20)
    began: list[int] = []

    def call(item: int, check: Check) -> None:
        began.append(item)
        both.wait()
        if item == 0:
            raise AyfError("no such model")
        while True:
            check()

    with pytest.raises(AyfError, match="no such model"):
        side_by_side(call, range(10), 2)
    assert sorted(began) == [0, 1]
