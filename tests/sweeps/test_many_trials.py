"""Sixteen trials that report at the same time: MLflow has every point of each, once, and never raised an error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ray import cloudpickle

from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.store import ensure_store
from sweeps import mlflow_runs, recorder, resources, runner

REPOSITORY = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("sweep_overhead", REPOSITORY / "benchmarks/sweep_overhead.py")
assert _spec is not None
assert _spec.loader is not None
overhead = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(overhead)

TRIALS, REPORTS, STEPS = 16, 50, 2000
RATE = "distill.emd.training.learning_rate"
SECONDS_TO_ARRIVE = 300


def chatty(settings: dict[str, Any], job: Any) -> None:
    """Many measurements in quick succession, from the moment on that all trials are there.

    Without the wait, on few cores each trial would have ended before the next one's process is up.
    """
    import os
    import time

    from ray import tune

    there = job.trials.parent / "there"
    there.mkdir(exist_ok=True)
    (there / str(os.getpid())).touch()
    until = time.monotonic() + SECONDS_TO_ARRIVE
    while len(list(there.iterdir())) < TRIALS:
        if time.monotonic() > until:
            raise TimeoutError("the other trials did not come")
        time.sleep(0.02)
    for number in range(1, REPORTS + 1):
        tune.report({"step": STEPS // REPORTS * number, "fd/nfe_2": settings["point"][RATE] / number})


@pytest.mark.ray
@pytest.mark.slow
def test_sixteen_trials_at_once_lose_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(resources, "core_count", lambda: TRIALS)
    # A recorder writes again what a store did not take: errors would pass unseen.
    raised: list[Exception] = []
    monkeypatch.setattr(recorder, "record_trial", _noting(recorder.record_trial, raised))
    monkeypatch.setattr(mlflow_runs, "open_run", _noting(mlflow_runs.open_run, raised))
    overhead.make_project(tmp_path, TRIALS)
    file = tmp_path / "sweeps/trivial.yaml"
    file.write_text(file.read_text().replace("scheduler: asha", "scheduler: none"))
    # By value: Ray's workers cannot import a test.
    by_value = cloudpickle.loads(cloudpickle.dumps(_as_main(chatty)))
    runner.run_sweep(tmp_path, "trivial", RuntimeConfig(mode="inline", device="cpu"), trainable=by_value)

    assert raised == []
    assert len(list((tmp_path / "runs/sweeps/trivial/001/there").iterdir())) == TRIALS
    client = MlflowClient(ensure_store(tmp_path))
    experiment = client.get_experiment_by_name("align-your-flow")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`ayf.kind` = 'trial'")
    assert sorted(int(run.data.tags["ayf.trial"]) for run in runs) == list(range(1, TRIALS + 1))
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "fd/nfe_2")
        rate = float(run.data.params[RATE])
        expected = [(STEPS // REPORTS * number, rate / number) for number in range(1, REPORTS + 1)]
        assert [(point.step, point.value) for point in history] == expected


def _noting(call: Callable, raised: list[Exception]) -> Callable:
    """The same call; what it raises is noted."""

    def noting(*arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except Exception as error:
            raised.append(error)
            raise

    return noting


def _as_main(function: Any) -> Any:
    function.__module__ = "__main__"
    return function
