"""The ledger: whatever is killed, it says which trials there are and what they reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from ayf_core.errors import AyfError
from sweeps.ledger import FINISHED, Ledger, Report


def test_a_ledger_read_again_is_the_same(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials")
    first, second = ledger.propose({"a": 0.1}), ledger.propose({"a": [1, 2]})
    ledger.report(first.number, Report(10, {"fd": 0.5}))
    ledger.report(first.number, Report(20, {"fd": 0.4}))
    ledger.end(first.number, FINISHED, 3.0)
    again = Ledger(tmp_path / "trials")
    assert again.trials == ledger.trials
    assert [trial.number for trial in again.waiting] == [second.number]
    assert again.trials[1].metrics == {"fd": 0.4}


def test_a_report_that_is_told_again_counts_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials")
    trial = ledger.propose({})
    assert ledger.report(trial.number, Report(10, {"fd": 0.5}))
    assert not ledger.report(trial.number, Report(10, {"fd": 0.5}))
    assert ledger.trials[trial.number].reports == (Report(10, {"fd": 0.5}),)


def test_a_member_that_starts_from_a_copy_leaves_its_own_later_path(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials")
    trial = ledger.propose({"a": 1})
    for step in (10, 20):
        ledger.report(trial.number, Report(step, {"fd": 0.5}))
    ledger.move(trial.number, {"a": 2})
    ledger.report(trial.number, Report(20, {"fd": 0.3}))
    again = Ledger(tmp_path / "trials").trials[1]
    assert again.point == {"a": 2}
    assert [(report.step, report.metrics["fd"]) for report in again.reports] == [(10, 0.5), (20, 0.3)]


def test_a_trial_killed_before_it_was_noted_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "trials/0001").mkdir(parents=True)
    assert Ledger(tmp_path / "trials").trials == {}
    assert Ledger(tmp_path / "trials").propose({}).number == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}', '{"number": 2, "point": {}}'])
def test_a_damaged_note_is_named(tmp_path: Path, text: str) -> None:
    ledger = Ledger(tmp_path / "trials")
    place = ledger.propose({"a": 1}).folder / "trial.json"
    place.write_text(text)
    with pytest.raises(AyfError, match=r"sweep folder damaged: .*trial\.json"):
        Ledger(tmp_path / "trials")
