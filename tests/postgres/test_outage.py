"""A server that goes away, by SIGKILL, and comes back: training goes on, nothing is lost, nothing is told twice.

    AYF_OUTAGE_SECONDS=120 python -m pytest tests/postgres/test_outage.py -k training_goes_on

lets it be away for two minutes.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ayf_core.errors import AyfError
from ayf_core.training.context import read_metrics
from pipelines.execution.run import run_stage
from pipelines.execution.stage import Stage
from sweeps.ledger import FINISHED, Ledger, Report
from tests.postgres.conftest import REPOSITORY, Server

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

_spec = importlib.util.spec_from_file_location("toy_project", REPOSITORY / "tests/pipelines/toy_project.py")
toy: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(toy)  # type: ignore[union-attr]

AWAY_SECONDS = float(os.environ.get("AYF_OUTAGE_SECONDS", "5"))
STEP_SECONDS = 0.1
STEPS = max(60, round((AWAY_SECONDS + 30) / STEP_SECONDS)) if AWAY_SECONDS > 5 else 60


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = Path(
        toy.write_project(tmp_path / "p", f"make: {{size: 3}}\nwalk: {{steps: {STEPS}, sleep: {STEP_SECONDS}}}\n")
    )
    (root / "data/made").mkdir(parents=True)
    (root / "data/made/numbers.txt").write_text("1 2 3\n")
    return root


@contextmanager
def away(server: Server, goes: Callable[[], bool], seconds: float = AWAY_SECONDS) -> Iterator[dict[str, float]]:
    """In the background: kill the server when `goes`, start it again after some seconds; notes the moments."""
    moments: dict[str, float] = {}

    def play() -> None:
        until = time.monotonic() + 180
        while not goes() and time.monotonic() < until:
            time.sleep(0.05)
        server.kill()
        moments["gone"] = time.time()
        time.sleep(seconds)
        server.start()
        moments["back"] = time.time()

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield moments
    finally:
        thread.join()


def walk(root: Path, server: Server, patience: float = 120.0) -> Stage:
    runtime = toy.runtime()
    runtime.tracking_uri, runtime.tracking_retry_seconds = server.uri, patience
    return run_stage(root, "walk@up", config=object(), runtime=runtime, body=toy.walk)


def reached(root: Path, step: int) -> Callable[[], bool]:
    def at_step() -> bool:
        files = list(root.glob("runs/walk@up/*/training/metrics.jsonl"))
        return bool(files) and len(files[0].read_text().splitlines()) >= step

    return at_step


def whole(server: Server, stage: Stage) -> Run:
    """The run of the stage; it is whole, and each point is there once."""
    client = MlflowClient(server.uri)
    run = client.get_run(stage.run.id)
    for metric in ("loss", "position"):
        history = client.get_metric_history(stage.run.id, metric)
        assert [point.step for point in sorted(history, key=lambda point: point.step)] == list(range(1, STEPS + 1))
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"].startswith("Made")
    assert "ayf.output.models/up" in run.data.tags
    mine = f"tags.`ayf.scratch` = '{run.data.tags['ayf.scratch']}'"
    same = client.search_runs([run.info.experiment_id], mine)
    assert [each.info.run_id for each in same] == [run.info.run_id]
    return run


def as_undisturbed(project: Path) -> bool:
    """The walk is exact: its end is known."""
    return json.loads((project / "models/up/model.json").read_text()) == [sum(range(1, STEPS + 1))] * 3


def test_training_goes_on_while_the_server_is_away(
    running: Server, project: Path, capsys: pytest.CaptureFixture[str], told: Callable[..., None]
) -> None:
    with away(running, reached(project, 10)) as moments:
        stage = walk(project, running)
    whole(running, stage)
    times = [record["time"] for _, record in read_metrics(stage.training_folder() / "metrics.jsonl")]
    assert max(after - before for before, after in itertools.pairwise(times)) < AWAY_SECONDS
    assert sum(moments["gone"] < moment for moment in times) > 20
    assert capsys.readouterr().out.count("MLflow is away: training goes on") == 1
    fault = f"MLflow server killed, started again {AWAY_SECONDS:.0f} s later"
    told(
        fault,
        lost=0,
        seconds=0.0,
        same=as_undisturbed(project),
        then="training does not stop; every point is told once",
    )


def test_a_stage_that_finishes_meanwhile_waits_and_tells_the_rest(
    running: Server, project: Path, capsys: pytest.CaptureFixture[str], told: Callable[..., None]
) -> None:
    with away(running, reached(project, STEPS - 20)) as moments:
        stage = walk(project, running)
        ended = time.time()
    whole(running, stage)
    assert ended > moments["back"] - 1.0
    lines = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert lines == [
        f"MLflow ({running.uri}) is away: waiting for it up to 2 min",
        f"MLflow ({running.uri}) is back",
    ]
    seconds, same = max(0.0, ended - moments["back"]), as_undisturbed(project)
    told("MLflow server away when a stage ends", lost=0, seconds=seconds, same=same, then="the stage waits, tells all")


def test_a_stage_that_starts_meanwhile_waits_and_then_runs(running: Server, project: Path) -> None:
    running.kill()
    with away(running, lambda: True):
        stage = walk(project, running)
    whole(running, stage)


def test_past_the_limit_the_stage_fails_and_the_same_command_tells_the_rest(running: Server, project: Path) -> None:
    killed = threading.Thread(target=lambda: (wait_until(reached(project, 30)), running.kill()))
    killed.start()
    with pytest.raises(AyfError, match=r"not all its metrics are logged: MLflow .* is away, also after 1 s") as caught:
        walk(project, running, patience=1.0)
    killed.join()
    assert "\n" not in str(caught.value)
    assert not (project / "models/up").exists()
    running.start()
    stage = walk(project, running)
    whole(running, stage)
    times = [record["time"] for _, record in read_metrics(stage.training_folder() / "metrics.jsonl")]
    assert len(times) == STEPS


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def test_a_sweeps_story_is_told_when_the_server_is_back(running: Server, tmp_path: Path) -> None:
    from pipelines.tracking.runs import open_run
    from sweeps.recorder import TrialRecorder

    runtime = toy.runtime()
    runtime.tracking_uri, runtime.tracking_retry_seconds = running.uri, 120.0
    ledger = Ledger(tmp_path / "trials")
    for number in (1, 2, 3):
        ledger.propose({"rate": float(number)})

    def opened(trial: Any) -> Any:
        place = {"root": tmp_path, "scratch": trial.folder, "runtime": runtime, "params": trial.point}
        tags = {"ayf.key": f"{tmp_path}/{trial.number}"}
        return open_run("distill@emd", run_name=f"{trial.number}: ", tags=tags, kind="trial", **place)

    class Silent:
        metrics = ("fd/nfe_2",)

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: None

    class Of:
        def __init__(self, number: int) -> None:
            self.number, self.config = number, {"point": ledger.trials[number].point}

    recorder = TrialRecorder(ledger, lambda trial: trial.number, opened, lambda _: 30, Silent(), nested=False)  # type: ignore[arg-type]
    running.kill()
    with away(running, lambda: True):
        began = time.monotonic()
        for number in (1, 2, 3):
            recorder.on_trial_start(0, [], Of(number))
            for step in (10, 20, 30):
                recorder.on_trial_result(0, [], Of(number), {"step": step, "fd/nfe_2": 1 / step})
            recorder.on_trial_complete(0, [], Of(number))
        assert time.monotonic() - began < AWAY_SECONDS  # no trial waits for the store
        recorder.finish()
    client = MlflowClient(running.uri)
    for trial in ledger.trials.values():
        assert trial.status == FINISHED
        run = client.get_run((trial.folder / "mlflow_run_id").read_text().strip())
        history = client.get_metric_history(run.info.run_id, "fd/nfe_2")
        assert {point.step: point.value for point in history} == {s: 1 / s for s in (10, 20, 30)}
        assert len(history) == len({Report(p.step, {}).step for p in history})
        assert run.info.status == "FINISHED"
        assert run.data.tags["ayf.trial.status"] == FINISHED
