"""The frames say what the store holds, in the shapes their docstrings promise."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from dashboards import frames
from dashboards.store import StoreError, experiments, stamp


def test_runs_have_a_row_each_with_typed_settings_and_last_metrics(store):
    table = frames.runs(store.uri).set_index("run_id")
    assert len(table) == 2 * 13 + 2 * (1 + 12 + 6)
    codec = table.loc[store.new["train_codec"]]
    assert (codec["kind"], codec["stage"], codec["status"]) == ("stage", "train_codec", "finished")
    assert (codec["params.data.name"], codec["params.seed"]) == ("digits", 0)
    assert codec["seconds"] == 180
    assert codec["start"].tzinfo is not None
    emd = table.loc[store.new["emd"]]
    assert emd["metrics.loss"] == pytest.approx(0.1353, abs=1e-4)  # exp(-1000 / 500): the last point
    trial = table[table["kind"] == "trial"].iloc[0]
    assert trial["parent_run_id"] == store.pair
    assert trial["sweep"] == "pair"


def test_the_newest_finished_evaluation_of_each_model_is_taken(store, made_up):
    assert frames.newest_evaluations(frames.runs(store.uri)) == [store.new[f"evaluate@{m}"] for m in made_up.MODELS]


def test_metrics_by_nfe_has_every_row_of_the_documents_and_the_measured_seconds(store):
    metrics = frames.metrics_by_nfe(store.uri)
    emd = metrics[metrics["model"] == "emd"]
    assert emd["sweep"].value_counts().to_dict() == {"quality": 4, "guidance": 3, "gamma": 3}
    quality = emd[emd["sweep"] == "quality"].set_index("nfe")
    assert quality.loc[2, "fd"] == pytest.approx(0.5 * 2)
    assert quality.loc[2, "fd_ci95"] == pytest.approx(0.08)
    assert quality.loc[8, "seconds_per_image"] == pytest.approx(8 * 2e-4)
    assert emd[emd["sweep"] != "quality"]["seconds_per_image"].isna().all()
    assert metrics.attrs["floor"] == {"fd_test": 1.37}


def test_an_older_version_can_be_read_beside_the_newest(store):
    both = [store.old["evaluate@emd"], store.new["evaluate@emd"]]
    metrics = frames.metrics_by_nfe(store.uri, both)
    at_two = metrics[(metrics["sweep"] == "quality") & (metrics["nfe"] == 2)].set_index("run_id")["fd"]
    assert at_two[both[0]] == pytest.approx(2 * at_two[both[1]])


def test_sample_pictures_are_those_of_every_pair(store):
    pictures = frames.sample_pictures(store.uri, [store.new["evaluate@emd"], store.new["evaluate@teacher"]])
    pairs = pictures[pictures["model"] == "emd"][["nfe", "guidance_scale"]].apply(tuple, axis=1).tolist()
    assert sorted(pairs) == [(nfe, scale) for nfe in (1, 2, 4, 8) for scale in (1.0, 1.5)]
    assert pictures[pictures["model"] == "teacher"]["guidance_scale"].isna().all()
    assert pictures["picture"].str.startswith("data:image/png;base64,").all()


def test_training_curves_know_the_bins_they_are_of(store):
    curves = frames.training_curves(store.uri, store.new["emd"])
    one = curves[curves["metric"] == "tangent_norm/interval_0.25"]
    assert set(zip(one["quantity"], one["variable"], one["low"], one["high"], strict=True)) == {
        ("tangent_norm", "interval", 0.25, 0.5)
    }
    assert one["step"].tolist() == list(range(0, 1001, 100))
    assert one["value"].is_monotonic_decreasing
    assert curves[curves["metric"] == "loss"]["variable"].isna().all()


def test_trials_name_settings_metrics_and_modes(store):
    trials = frames.trials(store.uri, "pair")
    assert trials.attrs["metrics"] == ["fd/nfe_2", "recall/nfe_2"]
    assert trials.attrs["modes"] == ["min", "max"]
    assert trials.attrs["settings"][0] == "distill.emd.training.learning_rate"
    proper = trials[trials["kind"] == "trial"]
    assert proper["trial"].tolist() == list(range(12))
    assert proper["status"].value_counts().to_dict() == {"stopped": 5, "finished": 5, "failed": 2}
    assert proper["distill.emd.tangent_warmup"].tolist()[:3] == [0, 100, 200]
    assert proper[proper["status"] == "failed"]["fd/nfe_2"].isna().all()
    assert proper[proper["status"] == "stopped"]["trained_steps"].unique().tolist() == [400]


def test_confirmations_stand_beside_the_trials_with_their_seeds(store):
    trials = frames.trials(store.uri, store.sweep)
    confirmed = trials[trials["kind"] == "confirmation"]
    assert confirmed["trial"].isna().all()
    assert confirmed.groupby("confirms")["seed"].apply(list).to_dict() == {
        "best": [101, 102, 103],
        "current": [101, 102, 103],
    }


def test_a_sweeps_name_means_its_newest_run(made_up, tmp_path):
    store = made_up.MadeUpStore(tmp_path)
    store.add_sweep("twice", trials=2)
    newer = store.add_sweep("twice", trials=3)
    assert frames.trials(store.uri, "twice")["sweep_run_id"].unique().tolist() == [newer]


def test_trial_curves_have_every_reported_step(store):
    curves = frames.trial_curves(store.uri, frames.trials(store.uri, "distill"))
    assert curves[curves["trial"] == 0]["step"].tolist() == [200, 400, 600, 800, 1000]
    assert curves[curves["trial"] == 1]["step"].tolist() == [200, 400]
    assert 3 not in set(curves["trial"])  # failed before it reported


def test_lineage_lists_each_run_once_and_after_all_that_used_it(store):
    trace = frames.lineage(store.uri, store.new["evaluate@adversarial"])
    order = trace["run_id"].tolist()
    assert order[0] == store.new["evaluate@adversarial"]
    assert set(trace["name"]) == {
        "evaluate adversarial", "finetune adversarial", "distill emd", "train teacher", "train weak teacher",
        "encode latents", "train codec", "train features",
    }  # fmt: skip
    for row in trace.itertuples():
        assert all(order.index(upstream) > order.index(row.run_id) for upstream in row.inputs.values())
    assert trace.set_index("name").loc["train codec", "settings"] == {"data.name": "digits", "seed": 0}


def test_runs_of_before_the_tags_are_stages_and_break_nothing(made_up, tmp_path):
    store = made_up.MadeUpStore(tmp_path)
    run_id = store.add_run("evaluate emd", tags={"dvc.stage": "evaluate@emd"})
    table = frames.runs(store.uri)
    assert (table["kind"].iloc[0], table["model"].iloc[0]) == ("stage", "emd")
    assert frames.metrics_by_nfe(store.uri).empty
    assert frames.sample_pictures(store.uri, [run_id]).empty


def test_an_experiment_without_runs_gives_empty_frames_with_their_columns(made_up, tmp_path):
    store = made_up.MadeUpStore(tmp_path)
    table = frames.runs(store.uri)
    assert table.empty
    assert {"run_id", "kind", "start"} <= set(table)
    assert frames.metrics_by_nfe(store.uri).empty


def test_the_stamp_of_a_store_changes_when_a_run_is_written(made_up, tmp_path):
    store = made_up.MadeUpStore(tmp_path)
    before = stamp(store.uri)
    assert stamp(store.uri) == before
    store.add_run("one more")
    assert stamp(store.uri) != before


def test_a_missing_store_is_one_line_and_is_not_created(tmp_path):
    with pytest.raises(StoreError, match=r"there is no MLflow store .*: `dvc repro` makes"):
        frames.runs(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_store_is_one_line(tmp_path):
    (tmp_path / "letter.db").write_text("Dear store, " * 200)
    with pytest.raises(StoreError, match="cannot be read") as caught:
        frames.runs(f"sqlite:///{tmp_path / 'letter.db'}")
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line():
    with pytest.raises(StoreError, match="does not answer: start it"):
        frames.runs("http://127.0.0.1:9")


def test_a_plain_folder_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="is no MLflow store: name one as sqlite"):
        frames.runs(str(tmp_path))


def test_an_unknown_experiment_names_those_there_are(store):
    with pytest.raises(StoreError, match="has no experiment elsewhere; it has align-your-flow"):
        frames.runs(store.uri, "elsewhere")
    assert experiments(store.uri) == ["align-your-flow"]


def test_an_unknown_sweep_names_those_there_are(store):
    with pytest.raises(StoreError, match=r"no sweep distil in the MLflow store .*; it has distill, pair"):
        frames.trials(store.uri, "distil")


def test_the_example_of_the_documentation_runs(repository: Path, store, tmp_path, monkeypatch):
    text = (repository / "docs/dashboard.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert blocks
    (tmp_path / "mlruns").mkdir()
    shutil.copy(store.uri.removeprefix("sqlite:///"), tmp_path / "mlruns/mlflow.db")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(blocks), names)
    assert isinstance(names["table"], pd.DataFrame)
    assert (tmp_path / "quality.html").stat().st_size > 1_000_000
