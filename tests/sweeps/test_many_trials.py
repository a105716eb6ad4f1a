"""Sixteen trials that report at the same time: MLflow has every point of each, once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ray import cloudpickle

from pipelines.config import RuntimeConfig
from pipelines.tracking import ensure_store
from sweeps import resources
from sweeps.runner import run_sweep

REPOSITORY = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("sweep_overhead", REPOSITORY / "benchmarks/sweep_overhead.py")
assert _spec is not None
assert _spec.loader is not None
overhead = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(overhead)

TRIALS, REPORTS = 16, 25


def chatty(settings: dict[str, Any], job: Any = None) -> None:
    """Many measurements in quick succession."""
    from ray import tune

    for number in range(1, 26):
        tune.report({"step": 80 * number, "fd/nfe_2": settings["point"]["distill.emd.training.learning_rate"] / number})


@pytest.mark.ray
@pytest.mark.slow
def test_sixteen_trials_at_once_lose_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(resources, "machine_cpus", lambda: TRIALS)
    overhead.make_project(tmp_path, TRIALS)
    file = tmp_path / "sweeps/trivial.yaml"
    file.write_text(file.read_text().replace("scheduler: asha", "scheduler: none"))
    # By value: Ray's workers cannot import a test.
    by_value = cloudpickle.loads(cloudpickle.dumps(_as_main(chatty)))
    run_sweep(tmp_path, "trivial", RuntimeConfig(mode="inline", device="cpu"), trainable=by_value)

    client = MlflowClient(ensure_store(tmp_path))
    experiment = client.get_experiment_by_name("align-your-flow")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`ayf.kind` = 'trial'")
    assert sorted(int(run.data.tags["ayf.trial"]) for run in runs) == list(range(1, TRIALS + 1))
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "fd/nfe_2")
        assert [point.step for point in history] == [80 * number for number in range(1, REPORTS + 1)]


def _as_main(function: Any) -> Any:
    function.__module__ = "__main__"
    return function
