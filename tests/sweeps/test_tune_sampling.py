"""Tuning a student that is really sampled: what is stored, told and remembered, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from rich.console import Console

from ayf_core.errors import AyfError
from ayf_core.sampling.generator import Generator
from ayf_core.sampling.settings import SamplingSettings
from ayf_core.sampling.stored import read_sampling, write_sampling
from pipelines.commands.main import main
from pipelines.project.declarations import fingerprint
from pipelines.settings import params_file as params
from pipelines.stages.bench import Bench
from pipelines.tracking.registry import resolve_model
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import tracking_uri
from sweeps.sampling_search import SamplingSearch, Verdict
from sweeps.tune_sampling import tune

STUDENT = "models/student"
REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("tiny_student.py")
_spec = importlib.util.spec_from_file_location("tiny_student", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
tiny_student = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_student)
INLINE, SEARCH = tiny_student.INLINE, tiny_student.SEARCH
write_model, write_project = tiny_student.write_model, tiny_student.write_project


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, no_foreign_settings: None) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project")


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure that settings really move: how far samples spread, held to 1.5; draw by draw some chance."""

    def measure(bench: Bench, samples: torch.Tensor, seed: int) -> dict[str, float]:
        return {"jsd": abs(samples.std().item() - 1.5), "sliced_wasserstein": samples.mean().item()}

    monkeypatch.setattr(Bench, "measure", measure)


@pytest.fixture
def indifferent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure that no settings move."""
    monkeypatch.setattr(Bench, "measure", lambda bench, samples, seed: {"jsd": 0.1 * seed})


def tune_quietly(root: Path, model: str = STUDENT, search: SamplingSearch = SEARCH) -> list[Verdict]:
    return tune(root, model, search, runtime=INLINE, console=Console(file=io.StringIO()))


def test_a_confirmed_gain_is_stored_with_the_model_and_used_by_it(project: Path, spread: None) -> None:
    before = fingerprint(project / STUDENT)
    (verdict,) = tune_quietly(project)
    assert verdict.confirmed
    model = Generator.load(project / STUDENT)
    assert model.sampling(2) == verdict.best.settings != model.untuned
    assert model.sampling(4) == model.untuned
    record = read_sampling(project / STUDENT)[2]
    assert record["metric"] == "jsd"
    assert record["after"] == pytest.approx(record["before"] - record["gain"])
    assert 0 < record["gain_low"] <= record["gain"] <= record["gain_high"]
    assert record["seeds"] == 3
    assert fingerprint(project / STUDENT) == before  # what reads the model need not run again


def test_without_a_confirmed_gain_nothing_is_stored_and_an_earlier_search_is_taken_back(
    project: Path, indifferent: None
) -> None:
    earlier = SamplingSettings("shifted", 2.0, 0.5, 1.5).to_dict()
    write_sampling(project / STUDENT, {2: earlier, 8: earlier})
    (verdict,) = tune_quietly(project)
    assert not verdict.confirmed
    model = Generator.load(project / STUDENT)
    assert model.sampling(2) == model.untuned
    assert model.sampling(8) == SamplingSettings.from_dict(earlier)


def test_settings_of_other_weights_are_replaced(project: Path, spread: None) -> None:
    write_sampling(project / STUDENT, {8: SamplingSettings().to_dict()})
    spoilt = (project / STUDENT / "sampling.json").read_text()
    write_model(project / STUDENT, seed=1)
    (project / STUDENT / "sampling.json").write_text(spoilt)
    with pytest.raises(AyfError, match="other weights"):
        read_sampling(project / STUDENT)
    tune_quietly(project)
    assert 8 not in read_sampling(project / STUDENT)


def test_a_repeated_search_measures_nothing_again_and_a_wider_one_only_what_is_new(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune_quietly(project)
    drawn: list[int] = []
    draw = Bench.draw
    monkeypatch.setattr(Bench, "draw", lambda *args, **how: drawn.append(args[3]) or draw(*args, **how))
    assert tune_quietly(project) == first
    assert drawn == []
    wider = tune_quietly(project, search=dataclasses.replace(SEARCH, held_out_seeds=4))
    assert set(drawn) == {503}
    assert wider[0].best.settings == first[0].best.settings


def test_mlflow_holds_one_parent_and_one_child_a_number_of_steps_however_often_it_is_run(
    project: Path, spread: None
) -> None:
    search = dataclasses.replace(SEARCH, steps=[1, 2])
    verdicts = tune_quietly(project, search=search)
    tune_quietly(project, search=search)
    client = MlflowClient(tracking_uri(project))
    experiment = client.get_experiment_by_name("align-your-flow")
    assert experiment is not None
    runs = {run.data.tags.get("ayf.trial", "parent"): run for run in client.search_runs([experiment.experiment_id])}
    assert len(client.search_runs([experiment.experiment_id])) == len(runs) == 3
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent, child = runs["parent"], runs["2"]
    assert parent.info.run_name == "tune sampling models/student"
    assert parent.data.tags["ayf.kind"] == "sweep"
    assert parent.data.tags["ayf.sweep"] == "sampling"
    assert parent.data.tags["ayf.metric"] == "jsd/nfe_1,jsd/nfe_2"
    assert parent.data.tags["ayf.mode"] == "min,min"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["ayf.kind"] == "trial"
    assert child.data.params["sampling.grid"] == verdicts[1].best.settings.grid
    assert child.data.metrics["jsd/nfe_2"] == verdicts[1].best.mean
    tried = client.get_metric_history(child.info.run_id, "candidate/jsd")
    assert [point.value for point in tried] == [candidate.mean for candidate in verdicts[1].candidates]
    assert {"sweep.yaml", "params.yaml", "trials.csv"} <= {f.path for f in client.list_artifacts(parent.info.run_id)}
    text = Path(client.download_artifacts(parent.info.run_id, "trials.csv")).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == sum(len(verdict.candidates) for verdict in verdicts)
    assert float(rows[0]["guidance_scale"]) == 1.0


def test_a_registered_model_keeps_its_settings_in_the_registry(project: Path, spread: None) -> None:
    run = open_run(
        "distill@emd", run_name="distill", root=project, scratch=project / "runs/x", params={}, tags={}, runtime=INLINE
    )
    run.register_model(project / STUDENT, "student", "current")
    (verdict,) = tune_quietly(project, "models:/student@current")
    for address in ("models:/student@current", "models:/student/1", f"runs:/{run.id}/models/student"):
        assert Generator.load(resolve_model(address, project, INLINE)).sampling(2) == verdict.best.settings
    assert not (project / STUDENT / "sampling.json").exists()


def test_the_command_tunes_and_ayf_sample_then_uses_what_was_stored(
    project: Path, spread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("AYF_RUNTIME", "inline")
    monkeypatch.setenv("COLUMNS", "160")
    (project / "sweeps").mkdir()
    text = (REPOSITORY / "sweeps/sampling.yaml").read_text()
    (project / "sweeps/sampling.yaml").write_text(text.replace("selection_seeds: 3 ", "selection_seeds: 1 "))

    def ayf(*words: str) -> str:
        result = CliRunner().invoke(main, list(words))
        assert result.exit_code == 0, result.output
        return result.stdout

    shown = ayf("tune-sampling", STUDENT, "--steps", "2", "--candidates", "6", "--metric", "jsd")
    used = Generator.load(project / STUDENT).sampling(2)
    assert "jsd, mean of 10 held-out draws" in shown
    assert str(used) in shown
    assert "sliced_wasserstein" in shown.split("other measures of the same draws")[1]
    assert f"wrote tuned.png: 2 steps, {used} (tuned for 2 steps)" in ayf(
        "sample", STUDENT, "--steps", "2", "--out", "tuned.png"
    )
    given = ["--gamma", repr(used.gamma), "--guidance-scale", repr(used.guidance_scale)]
    given += ["--grid", "uniform" if used.grid == "uniform" else f"{used.grid}:{used.grid_parameter!r}"]
    ayf("sample", STUDENT, "--steps", "2", "--untuned", *given, "--out", "given.png")
    said = ayf("sample", STUDENT, "--steps", "2", "--untuned", "--out", "untuned.png")
    assert "uniform grid, γ 0, λ 1\n" in said
    pictures = {name: (project / f"{name}.png").read_bytes() for name in ("tuned", "given", "untuned")}
    assert pictures["tuned"] == pictures["given"] != pictures["untuned"]
    said = ayf("sample", STUDENT, "--steps", "2", "--gamma", "0.25")
    assert "γ 0.25" in said
    assert "tuned for 2 steps, changed as asked" in said


def killed_or_not(root: Path, log: Path, kill_at: int) -> int:
    words = [sys.executable, str(SCRIPT), str(root), str(log), str(kill_at)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.slow
def test_a_search_killed_twice_goes_on_and_measures_no_draw_twice(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "other")
    log = tmp_path / "log"
    assert [killed_or_not(project, log, at) for at in (5, 17)] == [-signal.SIGKILL] * 2
    assert killed_or_not(project, log, 0) == 0
    assert killed_or_not(tmp_path / "other", tmp_path / "log of other", 0) == 0
    lines = log.read_text().splitlines()
    assert len(set(lines)) == len(lines)
    assert lines == (tmp_path / "log of other").read_text().splitlines()
    assert read_sampling(project / STUDENT) == read_sampling(tmp_path / "other" / STUDENT)
    client = MlflowClient(tracking_uri(project))
    experiment = client.get_experiment_by_name("align-your-flow")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2  # parent and child


def test_a_search_ended_by_hand_says_that_it_can_go_on_and_does(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, count = Bench.measure, iter(range(1000))

    def interrupted(bench: Bench, samples: torch.Tensor, seed: int) -> dict[str, float]:
        if next(count) == 7:
            raise KeyboardInterrupt
        return measure(bench, samples, seed)

    monkeypatch.setattr(Bench, "measure", interrupted)
    said = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        tune(project, STUDENT, SEARCH, runtime=INLINE, console=Console(file=said))
    assert "interrupted: give the command again" in said.getvalue()
    assert not (project / STUDENT / "sampling.json").exists()
    client = MlflowClient(tracking_uri(project))
    assert [run.info.status for run in client.search_runs(["1"])] == ["KILLED", "KILLED"]  # parent and child
    tune_quietly(project)
    assert [run.info.status for run in client.search_runs(["1"])] == ["FINISHED", "FINISHED"]
    assert (project / STUDENT / "sampling.json").exists()


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "fd"}, "no measure fd of data.name = checkerboard: choose jsd, sliced_wasserstein"),
        ({"metric": "jsdd"}, "did you mean jsd"),
        ({"largest_guidance_scale": 3.0}, "models/student learnt 1 to 2"),
    ],
)
def test_a_search_that_does_not_fit_the_student_is_refused(project: Path, changes: dict, message: str) -> None:
    with pytest.raises(AyfError, match=message) as caught:
        tune_quietly(project, search=dataclasses.replace(SEARCH, **changes))
    assert "\n" not in str(caught.value)
    assert not (project / "runs").exists()


def test_a_teacher_is_refused(project: Path) -> None:
    write_model(project / "models/teacher", role="velocity")
    with pytest.raises(AyfError, match=r"models/teacher is a velocity network.*name a distilled student"):
        tune_quietly(project, "models/teacher")


@pytest.mark.parametrize("option", [("--gamma", "0.5"), ("--grid", "shifted:2")])
def test_a_teacher_is_not_sampled_by_settings_of_a_student(project: Path, option: tuple[str, str]) -> None:
    write_model(project / "models/teacher", role="velocity")
    result = CliRunner().invoke(main, ["sample", str(project / "models/teacher"), *option])
    assert result.exit_code == 1
    assert "leave --gamma and --grid out" in result.stderr


def test_a_student_of_other_data_is_refused(project: Path) -> None:
    params.write(project, params.from_preset(project, "smoke", []), "smoke")
    with pytest.raises(AyfError, match=r"what params.yaml is about \(Handwritten digits\)"):
        tune_quietly(project)


def test_a_damaged_memory_is_named(project: Path, spread: None) -> None:
    tune_quietly(project)
    (memory,) = (project / "runs/tune_sampling").glob("*/measured.json")
    memory.write_text(json.dumps(json.loads(memory.read_text()))[:-9])
    with pytest.raises(AyfError, match=r"measured\.json is damaged.*delete it"):
        tune_quietly(project)
