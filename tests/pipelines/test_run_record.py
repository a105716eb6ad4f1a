"""What a stage may write to its run can be written to no record as well."""

from __future__ import annotations

import inspect

import pytest

from pipelines.tracking.run_record import NoRecord, RunRecord
from pipelines.tracking.runs import StageRun

METHODS = [name for name, value in vars(RunRecord).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("record", [NoRecord, StageRun])
def test_every_record_takes_the_same_calls(record: type, method: str) -> None:
    def parameters(of: type) -> list[tuple[str, object]]:
        return [(name, given.default) for name, given in inspect.signature(getattr(of, method)).parameters.items()]

    assert parameters(record) == parameters(RunRecord)
