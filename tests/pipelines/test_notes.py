"""Names and notes of runs, and the saved views: functions of what is known of the runs."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.notes import differences, headline, note, run_name, short_keys, sweep_note
from pipelines.tracking.runs import open_run
from pipelines.tracking.saved_views import ALL_RUNS, EVALUATIONS, LATEST_SWEEP, VIEW_TAG, links
from pipelines.tracking.store import ensure_store

RUNTIME = RuntimeConfig(mode="inline", system_metrics=False)


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_name_tells_three_differences_and_counts_the_rest():
    name = run_name("distill emd", {"distill.guidance.scale_max": 2.0, "seed": 3, "a.b": [1], "a.c": 1, "a.d": 2})
    assert name == "distill emd · scale_max=2.0, seed=3, b=[1] +2"
    assert run_name("distill emd", {}) == "distill emd"


def test_keys_are_as_short_as_tells_them_apart():
    keys = ["distill.emd.training.steps", "teacher.training.steps", "seed"]
    assert short_keys(keys) == dict(zip(keys, ["emd.training.steps", "teacher.training.steps", "seed"], strict=True))
    assert short_keys(["a.steps", "steps"]) == {"a.steps": "a.steps", "steps": "steps"}


def test_differences_are_leaves_that_the_preset_has_otherwise():
    preset = {"seed": 0, "distill": {"emd": {"training": {"steps": 20, "batch": 4}}}}
    params = {"seed": 0, "distill.emd": {"training": {"steps": 30, "batch": 4}}, "unknown": 1}
    assert differences(params, preset) == {"distill.emd.training.steps": 30}


def test_a_note_says_what_was_made_from_what_and_how():
    facts = {"outputs": ["models/emd"], "upstream": {"models/teacher": "abc"}, "experiment": "1", "dirty": True}
    facts |= {
        "metrics": {"fd/nfe_4": 0.5, "fd/nfe_1": 0.751},
        "command": "dvc repro distill@emd",
        "commit": "0123456789abcdef",
    }
    text = note(made=True, **facts)
    assert text.startswith("Made `models/emd`: **fd 0.751 at 1, 0.5 at 4 calls**.")
    assert "[models/teacher](#/experiments/1/runs/abc)" in text
    assert "`dvc repro distill@emd`, at commit `0123456789ab`, with changes that are not committed" in text
    assert note(made=False, **facts).startswith("Makes `models/emd`.")


def test_a_headline_is_a_distance_before_a_loss():
    assert headline({"loss": 1.0, "jsd/nfe_2": 0.25}) == "jsd 0.25 at 2 calls"
    assert headline({"loss": 0.12345, "learning_rate": 1.0}) == "loss 0.1235"
    assert headline({"learning_rate": 1.0}) == ""


def test_a_sweeps_note_lists_its_best_trials_with_links():
    trials = [{"name": "7: a|b", "run_id": "t7", "metrics": {"fd/nfe_2": 0.4}}]
    text = sweep_note(["best: trial 7"], trials, "1")
    assert "- best: trial 7" in text
    assert "| [7: a/b](#/experiments/1/runs/t7) | 0.4 |" in text


def opened(root, name, stage, kind="stage", parent=None, params=(), **tags):
    place = {"root": root, "scratch": root / "scratch" / name, "params": dict(params), "runtime": RUNTIME}
    return open_run(stage, run_name=name, tags=tags, kind=kind, parent=parent, **place)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    uri = ensure_store(root)
    assert [words for words, _ in links(uri, "http://here")] == ["All runs"]
    for model in ("emd", "lmd"):
        run = opened(root, f"evaluate {model}", f"evaluate@{model}")
        run.log_values({"fd/nfe_1": 0.9, "fd/nfe_2": 0.5, "fd/nfe_16": 0.4})
        run.finish()
    sweep = opened(
        root, "sweep a", "distill@emd", "sweep", **{"ayf.sweep": "a", "ayf.metric": "fd/nfe_2", "ayf.mode": "max"}
    )
    for number in (1, 2):
        opened(root, f"{number}", "distill@emd", "trial", sweep.id, {"seed": 0, "rate": number}).finish()
    return uri


def saved(uri, key):
    tags = MlflowClient(uri).get_experiment("1").tags
    return json.loads(json.loads(tags[VIEW_TAG + key])["state"])


def test_links_save_the_views_they_open(store):
    pages = dict(links(store, "http://here"))
    assert f"viewStateShareKey={ALL_RUNS}" in pages["All runs"]
    evaluations = saved(store, EVALUATIONS)
    assert evaluations["selectedColumns"][:3] == [f"metrics.`fd/nfe_{n}`" for n in (1, 2, 16)]
    assert (evaluations["orderByKey"], evaluations["orderByAsc"]) == ("metrics.`fd/nfe_2`", True)
    sweep = saved(store, LATEST_SWEEP)
    assert sweep["orderByAsc"] is False
    assert "params.`rate`" in sweep["selectedColumns"]
    assert "params.`seed`" not in sweep["selectedColumns"]


def test_saving_again_changes_nothing_and_leaves_a_persons_view(store):
    client = MlflowClient(store)
    client.set_experiment_tag("1", VIEW_TAG + "mine", "{}")
    links(store, "http://here")
    before = client.get_experiment("1").tags
    links(store, "http://here")
    assert client.get_experiment("1").tags == before
    assert before[VIEW_TAG + "mine"] == "{}"


def test_a_continued_run_has_each_image_and_its_note_once(store):
    root = Path(store.removeprefix("sqlite:///")).parents[1]
    for _ in range(2):
        run = opened(root, "evaluate weak", "evaluate@weak_teacher")
        run.log_step_image("samples", 4, Image.new("RGB", (8, 8)))
        run.set_note("made")
        first = run.id
    client = MlflowClient(store)
    assert len(client.list_artifacts(first, "images")) == 2  # the picture and MLflow's smaller copy
    assert client.get_run(first).data.tags["mlflow.note.content"] == "made"


def test_details_and_counts_of_no_trouble_are_no_curves(store):
    run = opened(Path(store.removeprefix("sqlite:///")).parents[1], "quiet", "distill@emd")
    metrics = {"loss": 1.0, "derivative_norm/t_0.00": 1.0, "skipped_steps": 0}
    run.log_metrics([{"step": 1, "time": 1.0, "metrics": metrics}])
    run.log_metrics([{"step": 2, "time": 2.0, "metrics": metrics | {"skipped_steps": 1}}])
    assert run.read()[1] == {"loss": 1.0, "skipped_steps": 1.0}
