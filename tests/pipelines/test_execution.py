"""Training in this process: results, resumption, errors, what is logged and shown. On Ray: tests/reliability."""

import importlib.util
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from ayf_core.errors import AyfError
from ayf_core.training.context import read_metrics
from pipelines.execution import shares
from pipelines.execution.progress import TrainingProgress
from pipelines.execution.ray_train import run_training
from pipelines.execution.shares import worker_threads
from pipelines.settings.runtime import RuntimeConfig

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("toy_project", HERE / "toy_project.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

FINAL = [float(sum(range(1, 61)))] * 3  # of a walk of 60 steps


def fit(folder, on_log=lambda records: None, **config):
    settings = {"steps": 60, **config}
    return run_training(toy.train, settings, folder=folder, name="walk", runtime=toy.runtime(), on_log=on_log)


def test_training_returns_its_result_and_hands_every_record_over(tmp_path):
    seen = []
    assert fit(tmp_path, seen.extend)["position"] == FINAL
    assert [record["step"] for record in seen] == list(range(1, 61))


def test_stopped_training_goes_on_from_its_last_checkpoint(tmp_path):
    with pytest.raises(AyfError, match="ground is missing"):
        fit(tmp_path, fail_at=35)
    result = fit(tmp_path)
    assert (result["start"], result["position"]) == (30, FINAL)
    steps = [record["step"] for _, record in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, 61))


def test_error_of_the_user_arrives_as_its_own_line(tmp_path):
    with pytest.raises(AyfError) as caught:
        fit(tmp_path, fail_at=5)
    assert str(caught.value) == "the ground is missing; lay some"


def test_any_other_error_is_one_line_that_names_the_traceback(tmp_path):
    with pytest.raises(AyfError) as caught:
        fit(tmp_path, bug_at=5)
    path = tmp_path / "traceback_rank0.txt"
    assert str(caught.value) == f"training stopped with KeyError: 'position'; the full traceback is in {path}"
    assert "raise KeyError" in path.read_text()


def test_records_that_could_not_be_logged_are_offered_again(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.execution.follower._LOG_RETRY_SECONDS", 0.0)
    attempts, taken = [], []

    def on_log(records):
        attempts.append(len(records))
        if len(attempts) == 1:
            raise ConnectionError("gone")
        taken.extend(records)

    fit(tmp_path, on_log, sleep=0.02)
    assert len(attempts) > 1
    assert [record["step"] for record in taken] == list(range(1, 61))


def test_metrics_that_are_never_taken_stop_the_stage_and_say_so(tmp_path):
    def on_log(records):
        raise ConnectionError("the server is gone")

    with pytest.raises(AyfError, match=r"not all its metrics are logged.*\(the server is gone\)"):
        fit(tmp_path, on_log)


def test_unknown_mode_is_refused(tmp_path):
    with pytest.raises(AyfError, match="mode clouds does not run here"):
        run_training(toy.train, {}, folder=tmp_path, name="x", runtime=toy.runtime("clouds"), on_log=print)


def test_more_gpu_workers_than_gpus_are_refused(tmp_path):
    runtime = toy.runtime()
    runtime.device, runtime.workers = "cuda", 4096
    with pytest.raises(AyfError, match="4096 GPU workers"):
        run_training(toy.train, {}, folder=tmp_path, name="x", runtime=runtime, on_log=print)


def test_threads_are_shared_out_between_workers_unless_set():
    runtime = toy.runtime(workers=10**6)
    assert worker_threads(runtime) == 1
    runtime.threads_per_worker = 3
    assert worker_threads(runtime) == 3
    runtime.threads_per_worker, runtime.workers, runtime.stages_at_once = None, 1, 1
    assert worker_threads(runtime) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cores", "gpu", "settings", "stages", "threads"),
    [
        (2, False, {}, 2, 1),
        (1, False, {}, 1, 1),
        (16, False, {}, 4, 4),
        (16, False, {"workers": 8}, 2, 1),
        (16, True, {}, 1, 16),
        (16, True, {"device": "cpu"}, 4, 4),
        (16, False, {"device": "cuda"}, 1, 16),
        (16, False, {"stages_at_once": 2}, 2, 8),
        (2, False, {"threads_per_worker": 2}, 2, 2),
    ],
)
def test_cores_are_shared_out_between_stages_by_the_runtime_alone(monkeypatch, cores, gpu, settings, stages, threads):
    monkeypatch.setattr(shares, "core_count", lambda: cores)
    monkeypatch.setattr(shares, "has_gpu", lambda: gpu)
    runtime = RuntimeConfig(**settings)
    assert (shares.stages_at_once(runtime), worker_threads(runtime)) == (stages, threads)


def test_outside_a_terminal_progress_is_a_line_every_tenth():
    out = io.StringIO()
    with TrainingProgress("walk", Console(file=out, width=200)) as progress:
        progress.note("starting Ray")
        for step in range(1, 101):
            progress.update([{"step": step, "total": 100, "time": step / 4, "metrics": {"loss": 2.0}}])
    lines = out.getvalue().splitlines()
    assert lines[0] == "walk: starting Ray"
    assert lines[1] == "walk: step 10 of 100, loss 2, 4 steps/s, 22 s left"
    assert len(lines) == 11  # the note, nine tenths, the summary
    assert lines[-1] == "walk: 100 steps in 25 s, loss 2, 4 steps/s"
