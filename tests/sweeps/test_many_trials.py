"""Sixteen trials that report at the same time: MLflow has every point of each, once, and never raised an error.

Ray Tune hands reports to one thread of one process, whatever the number of trials: here a loop plays it.
tests/sweeps/test_sweep.py has the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.runs import StageRun, open_run
from sweeps import recorder
from sweeps.ledger import FINISHED, Ledger, Trial
from sweeps.recorder import STATUS_TAG, TrialRecorder

TRIALS, REPORTS, STEPS = 16, 50, 2000
RATE, METRIC = "distill.emd.training.learning_rate", "fd/nfe_2"
EXPECTED = [(STEPS // REPORTS * number, 1 / number) for number in range(1, REPORTS + 1)]
RUNTIME = RuntimeConfig(mode="inline", device="cpu", system_metrics=False)


class Silent:
    """A view for nobody."""

    metrics = (METRIC,)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class TunesTrial:
    """What Ray Tune tells of a trial."""

    def __init__(self, number: int, point: dict[str, Any]) -> None:
        self.number, self.config = number, {"point": point}


def test_sixteen_trials_at_once_lose_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A recorder writes again what a store did not take: errors would pass unseen.
    raised: list[Exception] = []
    monkeypatch.setattr(recorder, "record_trial", _noting(recorder.record_trial, raised))
    ledger = Ledger(tmp_path / "trials")
    for number in range(1, TRIALS + 1):
        ledger.propose({RATE: number / 1000})

    def opened(trial: Trial) -> StageRun:
        tags = {"ayf.trial": str(trial.number)}
        return _opened(tmp_path, trial.folder, f"trial {trial.number}", trial.point, tags)

    recording = TrialRecorder(ledger, lambda trial: trial.number, opened, lambda _: STEPS, Silent(), nested=False)  # type: ignore[arg-type]
    trials = [TunesTrial(number, trial.point) for number, trial in ledger.trials.items()]
    for trial in trials:
        recording.on_trial_start(0, [], trial)
    for step, value in EXPECTED:
        for trial in trials:
            recording.on_trial_result(0, [], trial, {"step": step, METRIC: value})
    for trial in trials:
        recording.on_trial_complete(0, [], trial)
    recording.finish()

    assert raised == []
    runs = [(trial, (trial.folder / "mlflow_run_id").read_text().strip()) for trial in ledger.trials.values()]
    assert len({run for _, run in runs}) == TRIALS
    for trial, run in runs:
        assert _whole(run).data.params == {RATE: str(trial.point[RATE])}
        assert _whole(run).data.tags[STATUS_TAG] == FINISHED


def _opened(root: Path, scratch: Path, name: str, point: dict[str, Any], tags: dict[str, str]) -> StageRun:
    place = {"root": root, "scratch": scratch, "runtime": RUNTIME}
    return open_run("distill@emd", run_name=name, params=point, tags=tags, kind="trial", **place)


def _whole(run_id: str) -> Any:
    """The run, which has finished and has every point once."""
    client = MlflowClient()
    history = client.get_metric_history(run_id, METRIC)
    assert [(point.step, point.value) for point in history] == EXPECTED
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    return run


def _noting(call: Callable, raised: list[Exception]) -> Callable:
    """The same call; what it raises is noted."""

    def noting(*arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except Exception as error:
            raised.append(error)
            raise

    return noting
