"""Proposals and schedulers: functions of the ledger, so that a resumed search is the search that was interrupted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from pipelines.settings.experiment import Config
from pipelines.settings.params_file import from_preset
from sweeps.answer import mean_and_error, pareto_front
from sweeps.definition import Metric, Sweep, read_sweep
from sweeps.ledger import FINISHED, STOPPED, Ledger, Report, Trial
from sweeps.search import Proposals, optuna_point, random_point, scheduler_of, source_of
from sweeps.view import point_words, ranked

REPOSITORY = Path(__file__).resolve().parents[2]
METRIC = "fd/nfe_2"


@pytest.fixture(scope="module")
def config() -> Config:
    return from_preset(REPOSITORY, "digits")


@pytest.fixture
def sweep(config: Config) -> Sweep:
    return read_sweep(REPOSITORY, REPOSITORY / "sweeps/distill.yaml", config)


def told(sweep: Sweep, ledger: Ledger, count: int) -> None:
    """Trials whose distance grows with the distance of p_mean from -1."""
    source = source_of(sweep)
    for _ in range(count):
        trial = ledger.propose(source(ledger, len(ledger.trials) + 1))
        value = 1 + abs(trial.point["distill.time_law.p_mean"] + 1)
        ledger.report(trial.number, Report(2000, {METRIC: value}))
        ledger.end(trial.number, FINISHED, 1.0)


def test_the_first_trial_has_the_present_settings(sweep: Sweep, tmp_path: Path) -> None:
    assert source_of(sweep)(Ledger(tmp_path / "trials"), 1) == sweep.present


def test_random_points_fill_the_space(sweep: Sweep, tmp_path: Path) -> None:
    points = [random_point(sweep, Ledger(tmp_path / "trials"), number) for number in range(2, 18)]
    for key, dimension in sweep.space.items():
        assert all(dimension.contains(point[key]) for point in points)
    rates = sorted(point["distill.emd.training.learning_rate"] for point in points)
    assert rates[0] < 6.5e-4
    assert rates[-1] > 3e-3


def test_proposals_follow_from_the_ledger_alone(sweep: Sweep, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials")
    told(sweep, ledger, 8)
    again = Ledger(tmp_path / "trials")
    assert optuna_point(sweep, ledger, 9) == optuna_point(sweep, again, 9)


def test_optuna_searches_where_trials_were_good(sweep: Sweep, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials")
    told(sweep, ledger, 40)
    late = [trial.point["distill.time_law.p_mean"] for trial in list(ledger.trials.values())[-15:]]
    assert sum(abs(value + 1) for value in late) / len(late) < 0.2  # 0.55 for points that fill the range


def test_a_searcher_hands_out_unfinished_trials_first_and_then_only_what_is_missing(
    sweep: Sweep, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "trials")
    told(sweep, ledger, 2)
    third = ledger.propose({"distill.time_law.p_mean": 0.0})
    proposals = Proposals(Ledger(tmp_path / "trials"), lambda ledger, number: {"new": number}, count=4)
    assert proposals.suggest("a") == {"point": third.point}
    assert proposals.suggest("b") == {"point": {"new": 4}}
    assert proposals.suggest("c") == "FINISHED"
    assert (third.folder / "tune_id").read_text() == "a"


def test_no_trial_is_proposed_after_the_hours_are_over(tmp_path: Path) -> None:
    assert Proposals(Ledger(tmp_path / "trials"), lambda ledger, number: {}, 4, until=0.0).suggest("a") == "FINISHED"


def test_a_resumed_asha_holds_new_trials_to_the_rungs_of_ended_ones(sweep: Sweep, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials")
    for value in (0.5, 0.6, 0.7):
        trial = ledger.propose({})
        ledger.report(trial.number, Report(200, {METRIC: value}))
        ledger.end(trial.number, STOPPED, 1.0)

    def decision(known: Ledger, value: float) -> str:
        scheduler, trial = scheduler_of(sweep, known), SimpleNamespace(trial_id="new")
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, {"step": 200, METRIC: value})

    assert decision(ledger, 0.9) == TrialScheduler.STOP
    assert decision(ledger, 0.4) == TrialScheduler.CONTINUE
    assert decision(Ledger(tmp_path / "none"), 0.9) == TrialScheduler.CONTINUE


def trial(number: int, status: str | None, **metrics: float) -> Trial:
    return Trial(number, {}, Path(), status, (Report(1, metrics),))


def test_the_ranking_puts_finished_trials_first_in_the_metrics_direction() -> None:
    trials = [trial(1, FINISHED, recall=0.5), trial(2, STOPPED, recall=0.9), trial(3, FINISHED, recall=0.7)]
    metric = Metric("recall", "recall", 2, "max")
    assert [t.number for t in ranked(metric, trials)] == [3, 1, 2]


def test_the_front_is_what_no_other_trial_beats() -> None:
    metrics = [Metric("fd", "fd", 2, "min"), Metric("recall", "recall", 2, "max")]
    trials = [
        trial(1, FINISHED, fd=1.0, recall=0.9),
        trial(2, FINISHED, fd=0.5, recall=0.8),
        trial(3, FINISHED, fd=0.6, recall=0.7),
    ]
    assert [t.number for t in pareto_front(metrics, trials)] == [1, 2]


def test_the_standard_error_is_of_the_mean() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert (mean, error) == (2.0, pytest.approx(1 / 3**0.5))


def test_settings_are_named_by_as_few_words_as_tell_them_apart() -> None:
    assert point_words({"a.steps": 2, "b.steps": 3, "b.rate": 0.00123456}) == "a.steps=2, b.steps=3, rate=0.001235"
