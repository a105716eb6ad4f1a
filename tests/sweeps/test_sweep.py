"""Real sweeps on real Ray Tune, at their smallest: what they leave in MLflow, how they go on, what they refuse."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run

from ayf_core.errors import AyfError
from ayf_core.files import found_below
from pipelines.commands.main import main
from pipelines.execution.run import run_stage
from pipelines.settings.reading import load_config
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.store import ensure_store
from sweeps.ledger import FAILED, FINISHED, STOPPED, Ledger
from sweeps.runner import run_sweep
from tests.made_once import made_once

SCRIPT = Path(__file__).with_name("sweep_project.py")
_spec = importlib.util.spec_from_file_location("sweep_project", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
sweep_project = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sweep_project)
LEARNING_RATE, SWEEP = sweep_project.LEARNING_RATE, sweep_project.SWEEP

pytestmark = [pytest.mark.ray, pytest.mark.slow]
LOCAL = RuntimeConfig(mode="inline", device="cpu", system_metrics=False, log_every=4)
METRIC = "jsd/nfe_2"


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, no_foreign_settings: None) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents and teachers, trained once. Made before any test's own settings apply."""
    return made_once(tmp_path_factory, "sweep-project", sweep_project.write_project)


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return sweep_project.copy_of(made, tmp_path / "project")


def with_settings(text: str, **changes: str) -> str:
    """A sweep file with other values of its one-line settings."""
    kept = [line for line in text.splitlines() if line.split(":")[0] not in changes]
    return "\n".join([*kept, *(f"{key}: {value}" for key, value in changes.items())]) + "\n"


def grid(*rates: float) -> str:
    text = with_settings(SWEEP, search="grid")
    lines = [line for line in text.splitlines() if not line.startswith("trials:")]
    values = ", ".join(str(rate) for rate in rates)
    return "\n".join(f"  {LEARNING_RATE}: [{values}]" if LEARNING_RATE in line else line for line in lines) + "\n"


def runs_of(root: Path) -> dict[str, list[Run]]:
    """The runs of a project by their kind."""
    client = MlflowClient(ensure_store(root))
    experiment = client.get_experiment_by_name("align-your-flow")
    assert experiment is not None
    found: dict[str, list[Run]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found.setdefault(run.data.tags["ayf.kind"], []).append(run)
    return found


def ledger_of(root: Path, name: str = "tiny", part: str = "trials") -> Ledger:
    return Ledger(root / "runs/sweeps" / name / "001" / part)


@pytest.fixture(scope="module")
def finished(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep with a confirmation, run by the real command."""
    root = sweep_project.copy_of(made, tmp_path_factory.mktemp("finished") / "project")
    sweep_project.write_sweep(root, with_settings(SWEEP, confirm_seeds="[1, 2]"))
    done = sweep(root)
    assert done.wait(300) == 0, done.stdout.read() if done.stdout else ""
    return root


def sweep(root: Path, *options: str, name: str = "tiny", **settings: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= {"AYF_RUNTIME": "runtime.yaml", "OMP_NUM_THREADS": "1"} | settings
    command = [sys.executable, "-m", "pipelines.commands.main", "sweep", name, *options]
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, cwd=root, env=environment, stdout=pipe, stderr=out, text=True)


# -------------------------------------------------------------------------------------------- what a sweep leaves


def test_a_sweep_is_one_parent_with_a_child_a_trial(finished: Path) -> None:
    runs = runs_of(finished)
    (parent,) = runs["sweep"]
    trials = {int(run.data.tags["ayf.trial"]): run for run in runs["trial"]}
    assert sorted(trials) == [1, 2, 3, 4]
    assert len(runs["trial"]) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in runs["trial"] + runs["confirmation"]} == {parent.info.run_id}
    assert {run.info.status for kind in ("sweep", "trial", "confirmation") for run in runs[kind]} == {"FINISHED"}
    assert "learning_rate=" in trials[2].info.run_name
    assert set(trials[2].data.metrics) == {METRIC, "trained_steps"}
    best = min(trials.values(), key=lambda run: run.data.metrics[METRIC])
    assert parent.data.metrics[METRIC] == best.data.metrics[METRIC]
    assert parent.data.tags["ayf.best"] == best.info.run_id
    assert best.info.run_id in parent.data.tags["mlflow.note.content"]


def test_a_trials_history_has_every_measurement_once(finished: Path) -> None:
    client = MlflowClient(ensure_store(finished))
    for run in runs_of(finished)["trial"]:
        history = client.get_metric_history(run.info.run_id, METRIC)
        assert [point.step for point in history] == [4, 8, 12]


def test_the_parent_keeps_table_page_and_files(finished: Path) -> None:
    client = MlflowClient(ensure_store(finished))
    (parent,) = runs_of(finished)["sweep"]
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"sweep.yaml", "params.yaml", "trials.csv", "sweep.html"} <= kept


def test_best_and_present_settings_are_confirmed_on_the_same_seeds(finished: Path) -> None:
    confirmed = runs_of(finished)["confirmation"]
    assert sorted((run.data.tags["ayf.settings"], run.data.params["seed"]) for run in confirmed) == [
        ("best", "1"),
        ("best", "2"),
        ("current", "1"),
        ("current", "2"),
    ]


def test_the_adopted_trial_gives_the_pipeline_its_figure(finished: Path, tmp_path: Path, monkeypatch) -> None:
    root = sweep_project.copy_of(finished, tmp_path / "adopting")
    (root / "mlruns").symlink_to(finished / "mlruns")
    monkeypatch.chdir(root)
    done = CliRunner().invoke(main, ["params", "adopt", "tiny"])
    assert done.exit_code == 0, done.output
    (parent,) = runs_of(finished)["sweep"]
    best = MlflowClient(ensure_store(finished)).get_run(parent.data.tags["ayf.best"])
    wanted = json.loads(best.data.tags["ayf.point"])[LEARNING_RATE]
    assert load_config(root).distill.students["emd"].training.learning_rate == wanted
    assert "learning_rate" in done.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    for stage in ("distill@emd", "evaluate@emd"):
        run_stage(root, stage, runtime=sweep_project.INLINE)
    rows = json.loads((root / "reports/evaluation/emd.json").read_text())["rows"]
    measured = next(row["jsd"] for row in rows if row["sweep"] == "quality" and row["nfe"] == 2)
    assert measured == pytest.approx(best.data.metrics[METRIC], rel=1e-12)


# ------------------------------------------------------------------------------------------------ killed, resumed


def ended(root: Path, count: int, part: str = "trials") -> bool:
    results = (root / "runs/sweeps/tiny/001" / part).glob("*/result.json")
    return sum('"status": null' not in result.read_text() for result in results) >= count


def measured(root: Path) -> bool:
    return bool(found_below(root / "runs/sweeps/tiny/001/trials/0001", "metrics.jsonl"))


def test_a_sweep_killed_at_three_moments_has_every_trial_once_and_the_same_best(project: Path, finished: Path) -> None:
    sweep_project.write_sweep(project, with_settings(SWEEP, confirm_seeds="[1, 2]"))
    moments: list[Callable[[], bool]] = [
        lambda: measured(project),
        lambda: ended(project, 2),
        lambda: ended(project, 1, "confirmation"),
    ]
    for number, moment in enumerate(moments):
        process = sweep(project, *(["--resume"] if number else []))
        deadline = time.monotonic() + 240
        while not moment() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        process.send_signal(signal.SIGKILL)
        process.wait()
        if number == 0:
            with pytest.raises(AyfError, match="--resume"):  # another does not begin over it
                run_sweep(project, "tiny", LOCAL)
    last = sweep(project, "--resume")
    assert last.wait(300) == 0, last.stdout.read() if last.stdout else ""

    runs, undisturbed = runs_of(project), runs_of(finished)
    assert len(runs["sweep"]) == 1
    for kind, count in (("trial", 4), ("confirmation", 4)):
        assert len(runs[kind]) == count
        assert {run.info.status for run in runs[kind]} == {"FINISHED"}
    for kind in ("trial", "confirmation"):
        figures = [
            sorted((run.data.tags["ayf.point"], run.data.metrics[METRIC]) for run in found[kind])
            for found in (runs, undisturbed)
        ]
        assert figures[0] == figures[1]
    client = MlflowClient(ensure_store(project))
    for run in runs["trial"]:
        assert [point.step for point in client.get_metric_history(run.info.run_id, METRIC)] == [4, 8, 12]


def test_a_sweep_asked_to_stop_has_its_trials_take_a_checkpoint_and_ends(project: Path, tmp_path: Path) -> None:
    """As Slurm's warning asks the sweep of a job."""
    steps = 100_000  # it is asked long before they are done
    longer = with_settings(grid(1e-3, 2e-3), fixed=f"{{distill.emd.training.steps: {steps}}}", measure_every="50000")
    sweep_project.write_sweep(project, longer)
    stop_file = tmp_path / "stop"
    process = sweep(project, AYF_STOP_FILE=str(stop_file))
    trials = project / "runs/sweeps/tiny/001/trials"
    while len(found_below(trials, "metrics.jsonl")) < 2 and process.poll() is None:
        time.sleep(0.05)
    stop_file.touch()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "--resume` goes on from here" in said
    folders = [trial.folder for trial in ledger_of(project).waiting]
    checkpoints = [max(found_below(folder, "checkpoints/step_????????")) for folder in folders]
    assert len(checkpoints) == 2
    assert all(0 < int(place.name[5:]) < steps for place in checkpoints)
    assert {run.info.status for run in runs_of(project)["trial"]} == {"KILLED"}


# ---------------------------------------------------------------------------------------------------- schedulers


def test_one_trial_diverges_and_asha_stops_a_weak_one(project: Path) -> None:
    sweep_project.write_sweep(project, with_settings(grid(1e30, 1e-3, 5.0), scheduler="asha", asha_factor="2"))
    run_sweep(project, "tiny", RuntimeConfig(mode="inline", device="cpu", trials_at_once=1))
    diverged, good, weak = ledger_of(project).trials.values()
    assert (diverged.status, good.status, good.step) == (FAILED, FINISHED, 12)
    assert "has diverged" in diverged.message
    assert weak.status == STOPPED
    assert weak.step < 12
    runs = {int(run.data.tags["ayf.trial"]): run for run in runs_of(project)["trial"]}
    assert [runs[number].info.status for number in (1, 2, 3)] == ["FAILED", "FINISHED", "FINISHED"]
    assert runs[1].data.tags["ayf.trial.message"] == diverged.message


def test_trials_of_two_workers_measure_what_one_measures_and_a_stopped_one_frees_them(
    project: Path, finished: Path
) -> None:
    one = ledger_of(finished).trials[1]
    rates = (one.point[LEARNING_RATE], 5.0, 2e-3)
    sweep_project.write_sweep(project, with_settings(grid(*rates), scheduler="asha", asha_factor="2"))
    run_sweep(project, "tiny", RuntimeConfig(mode="ray", workers=2, device="cpu", log_every=4))
    two, weak, after = ledger_of(project).trials.values()
    assert two.step == one.step
    assert two.metrics[METRIC] == pytest.approx(one.metrics[METRIC], abs=5e-3)
    assert weak.status == STOPPED
    assert after.step > 0


def test_a_population_copies_the_checkpoint_of_a_better_member(project: Path) -> None:
    sweep_project.write_sweep(
        project, with_settings(SWEEP, scheduler="population", measure_every="2", exploit_share="0.5")
    )
    run_sweep(project, "tiny", LOCAL)
    trials = ledger_of(project).trials
    copies = [
        (number, json.loads(line))
        for number, trial in trials.items()
        for line in (
            (trial.folder / "copies.jsonl").read_text().splitlines() if (trial.folder / "copies.jsonl").exists() else []
        )
    ]
    assert copies
    assert all(f"/{number:04d}/" not in copy["from"] for number, copy in copies)
    assert {trial.step for trial in trials.values()} == {12}
    tags = {
        int(run.data.tags["ayf.trial"]): json.loads(run.data.tags["ayf.point"]) for run in runs_of(project)["trial"]
    }
    assert tags == {number: trial.point for number, trial in trials.items()}
