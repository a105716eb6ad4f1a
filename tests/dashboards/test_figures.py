"""Figures show what the frames hold: tested on their data, on hand-made frames."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dashboards import figures, names
from dashboards.figures.style import duration, log_axis, small_time, with_interval
from dashboards.importance import importance


def evaluations(*runs: tuple[str, str, float]) -> pd.DataFrame:
    """Quality, guidance and gamma rows of (run id, model, distance at one call)."""
    rows = []
    for run_id, model, distance in runs:
        about = {"run_id": run_id, "model": model, "start": pd.Timestamp("2026-11-25", tz="UTC"), "commit": "abc"}
        about |= {"distance": "fd", "gamma": 0.0, "guidance_scale": np.nan, "precision": 0.9, "recall": 0.8}
        for nfe in (1, 2, 4):
            measured = {"fd": distance / nfe, "fd_ci95": 0.1, "seconds_per_image": nfe * 1e-3}
            rows.append({**about, "sweep": "quality", "nfe": nfe, **measured})
        rows += [{**about, "sweep": "guidance", "nfe": 4, "guidance_scale": s, "fd": distance * s} for s in (1.5, 1.0)]
        rows += [{**about, "sweep": "gamma", "nfe": 4, "gamma": g, "fd": distance * (1 + g)} for g in (0.0, 1.0)]
    return pd.DataFrame(rows)


def sweep_of(values: list[float], *, statuses: list[str] | None = None, confirmations: bool = False) -> pd.DataFrame:
    """Trials whose learning rate grows tenfold each, with these values of fd/nfe_2."""
    start = pd.Timestamp("2026-11-25 12:00", tz="UTC")
    rows = [
        {
            "sweep": "s", "sweep_run_id": "p", "run_id": f"r{k}", "name": f"trial {k}", "trial": float(k),
            "kind": "trial", "status": statuses[k] if statuses else "finished",
            "start": start + pd.Timedelta(minutes=k), "end": start + pd.Timedelta(minutes=k + 2),
            "seconds": 120.0, "trained_steps": 1000.0, "confirms": None,
            "seed": None, "a.learning_rate": 10.0 ** (k - 4), "a.law": ("uniform", "normal")[k % 2], "fd/nfe_2": value,
        }
        for k, value in enumerate(values)
    ]  # fmt: skip
    if confirmations:
        for settings, value in (("best", 1.0), ("best", 2.0), ("current", 4.0)):
            rows.append({**rows[0], "kind": "confirmation", "trial": np.nan, "confirms": settings, "fd/nfe_2": value})
    frame = pd.DataFrame(rows)
    frame.attrs |= {"settings": ["a.learning_rate", "a.law"], "metrics": ["fd/nfe_2"], "modes": ["min"]}
    return frame


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


# ------------------------------------------------------------------------------------------------- evaluations


def test_quality_draws_each_run_in_its_models_colour_with_its_band():
    figure = figures.quality_figure(evaluations(("a", "teacher", 1.0), ("b", "emd", 2.0)))
    student = named(figure, "Student, AYF-EMD")
    assert list(student.x) == [1, 2, 4]
    assert list(student.y) == [2.0, 1.0, 0.5]
    assert student.line.color == "#0072B2"
    band = named(figure, "Student, AYF-EMD: 95 % interval")
    assert list(band.y) == pytest.approx([2.1, 1.1, 0.6, 0.4, 0.9, 1.9])
    assert student.hovertext[1] == "Student, AYF-EMD<br>2 network calls: 1 ± 0.1"


def test_two_versions_of_a_model_are_told_apart_by_date_and_dashes():
    figure = figures.quality_figure(evaluations(("new", "emd", 1.0), ("old", "emd", 2.0)))
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.line.dash for line in lines] == ["solid", "dash"]
    assert all("25 Nov 2026" in line.name for line in lines)


def test_a_band_never_reaches_zero_where_the_axis_is_logarithmic():
    table = evaluations(("a", "emd", 0.05))
    band = named(figures.quality_figure(table), "Student, AYF-EMD: 95 % interval")
    assert min(band.y) > 0


def test_real_data_are_drawn_as_a_floor():
    table = evaluations(("a", "emd", 1.0))
    table.attrs["floor"] = {"fd": 0.25}
    assert list(named(figures.quality_figure(table), "Real training data").y) == [0.25, 0.25]


def test_cost_marks_what_nothing_beats_in_time_and_distance():
    table = evaluations(("fast", "emd", 1.0), ("bad", "lmd", 3.0))
    front = named(figures.cost_figure(table), "Pareto front")
    assert list(front.x) == pytest.approx([1e-3, 2e-3, 4e-3])
    assert list(front.y) == [1.0, 0.5, 0.25]


def test_cost_of_a_measure_where_more_is_better_turns_the_front():
    table = evaluations(("a", "emd", 1.0), ("b", "lmd", 1.0))
    table.loc[table["model"] == "lmd", "recall"] = 0.95
    assert set(named(figures.cost_figure(table, "recall"), "Pareto front").y) == {0.95}


def test_guidance_is_drawn_by_rising_scale_with_precision_and_recall_below():
    figure = figures.sweep_of_sampling_figure(evaluations(("a", "emd", 1.0)), "guidance")
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [list(line.x) for line in lines] == [[1.0, 1.5]] * 3
    assert list(lines[0].y) == [1.0, 1.5]
    assert lines[0].hovertext[1] == (
        "Student, AYF-EMD, 4 network calls<br>guidance scale 1.5: Fréchet distance to training data 1.5"
    )


def test_gamma_has_a_figure_of_its_own():
    figure = figures.sweep_of_sampling_figure(evaluations(("a", "emd", 1.0)), "gamma")
    assert list(figure.data[0].x) == [0.0, 1.0]
    assert list(figure.data[0].y) == [1.0, 2.0]


def test_pareto_front_keeps_equals_and_drops_the_unknown():
    first = pd.Series([1.0, 1.0, 2.0, 3.0, np.nan])
    second = pd.Series([3.0, 3.0, 1.0, 2.0, 0.0])
    assert figures.pareto_front(first, second).tolist() == [True, True, True, False, False]


# ---------------------------------------------------------------------------------------------------- training


def test_training_draws_the_bins_of_the_asked_variable_only():
    rows = [("loss", "loss", None, np.nan, np.nan), ("n/interval_0.00", "n", "interval", 0.0, 0.5)]
    rows += [("n/interval_0.50", "n", "interval", 0.5, 1.0), ("n/t_0.00", "n", "t", 0.0, 0.5)]
    curves = pd.DataFrame(
        [[*row, step, 1.0 + step] for row in rows for step in (0, 10)],
        columns=["metric", "quantity", "variable", "low", "high", "step", "value"],
    )
    by_length = figures.training_figure(curves, "t − s")
    assert [trace.meta for trace in by_length.data] == ["loss", "n/interval_0.00", "n/interval_0.50"]
    assert named(by_length, "t − s from 0.5 to 1").y[1] == 11.0
    assert [trace.meta for trace in figures.training_figure(curves, "t").data] == ["loss", "n/t_0.00"]


# ----------------------------------------------------------------------------------------------------- samples


def pictures() -> pd.DataFrame:
    rows = []
    for nfe in (1, 4):
        for scale in (1.0, 1.5):
            png = io.BytesIO()
            Image.new("L", (2, 2), 50 * nfe + int(10 * scale)).save(png, "PNG")
            uri = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
            rows.append(["r", "emd", nfe, scale, uri])
    return pd.DataFrame(rows, columns=["run_id", "model", "nfe", "guidance_scale", "picture"])


def test_the_sliders_windows_hold_the_picture_of_their_pair():
    table = pictures()
    figure = figures.samples_figure(table)
    calls, scales = figure.layout.sliders
    assert [step.label for step in calls.steps] == ["1", "4"]
    assert [step.label for step in scales.steps] == ["1", "1.5"]
    for i, nfe in enumerate((1, 4)):
        for j, scale in enumerate((1.0, 1.5)):
            x, y = calls.steps[i].args[0]["xaxis.range"], scales.steps[j].args[0]["yaxis.range"]
            inside = [im for im in figure.layout.images if x[0] < im.x < x[1] and y[0] < im.y < y[1]]
            wanted = table[(table["nfe"] == nfe) & (table["guidance_scale"] == scale)]["picture"].tolist()
            assert [image.source for image in inside] == wanted


def test_a_pair_without_a_picture_says_so():
    figure = figures.samples_figure(pictures().iloc[:-1])
    assert [note.text for note in figure.layout.annotations] == ["no picture of this pair"]
    assert len(figure.layout.images) == 3


def test_a_model_without_guidance_has_one_slider():
    table = pictures().assign(guidance_scale=np.nan).drop_duplicates("nfe")
    assert len(figures.samples_figure(table).layout.sliders) == 1


# ------------------------------------------------------------------------------------------------------ sweeps


def test_the_best_trial_is_one_that_ran_to_the_end():
    trials = sweep_of([0.1, 0.5, 0.4], statuses=["stopped", "finished", "finished"])
    assert figures.best_trial(trials, "fd/nfe_2") == 2
    trials.attrs["modes"] = ["max"]
    assert figures.best_trial(trials, "fd/nfe_2") == 1


def test_parallel_coordinates_place_each_trial_on_each_row():
    figure = figures.parallel_figure(sweep_of([3.0, 1.0, 2.0]), "fd/nfe_2")
    best = named(figure, "trial 1")
    assert list(best.x) == pytest.approx([0.5, 0.0, 0.0])  # 1e-3 of 1e-4 to 1e-2; "normal" before "uniform"; the least
    assert best.line.width > named(figure, "trial 0").line.width
    assert "a › learning rate: 0.001" in best.hovertext[0]


def test_trials_without_the_metric_are_not_in_the_parallel_coordinates():
    figure = figures.parallel_figure(sweep_of([1.0, np.nan]), "fd/nfe_2")
    assert [trace.name for trace in figure.data] == ["trial 0"]


def test_timeline_has_a_bar_a_trial_coloured_by_its_end():
    figure = figures.timeline_figure(sweep_of([1.0, 2.0], statuses=["finished", "failed"]))
    failed = named(figure, "failed")
    assert list(failed.y) == ["trial 1"]
    assert list(failed.x) == [120_000]
    assert failed.marker.color == names.STATUS_COLOURS["failed"]


def test_a_trial_that_still_runs_is_drawn_up_to_the_last_event():
    trials = sweep_of([1.0, 2.0], statuses=["running", "finished"])
    trials.loc[0, ["end", "seconds"]] = [pd.NaT, np.nan]
    running = named(figures.timeline_figure(trials), names.STATUS_WORDS["running"])
    assert list(running.x) == [180_000]  # the other ended three minutes after this one began


def test_learning_curves_single_out_the_best():
    trials = sweep_of([2.0, 1.0])
    curves = pd.DataFrame(
        [[f"r{k}", float(k), "finished", "fd/nfe_2", step, k + step] for k in (0, 1) for step in (1, 2)],
        columns=["run_id", "trial", "status", "metric", "step", "value"],
    )
    figure = figures.learning_curves_figure(curves, trials, "fd/nfe_2")
    assert list(named(figure, "the best trial").y) == [2, 3]


def test_trade_off_turns_with_the_direction_of_the_metrics():
    trials = sweep_of([1.0, 2.0, 3.0]).assign(recall=[0.5, 0.9, 0.8])
    trials.attrs |= {"metrics": ["fd/nfe_2", "recall"], "modes": ["min", "max"]}
    front = figures.pareto_figure(trials).data[0]
    assert list(zip(front.x, front.y, strict=True)) == [(1.0, 0.5), (2.0, 0.9)]


def test_confirmation_shows_mean_and_standard_error():
    figure = figures.confirmation_figure(sweep_of([1.0], confirmations=True), "fd/nfe_2")
    best = next(trace for trace in figure.data if trace.name and trace.name.startswith("best"))
    assert best.y[0] == 1.5
    assert best.error_y.array[0] == pytest.approx(0.5)


def test_importance_finds_the_setting_that_decides():
    random = np.random.default_rng(0)
    trials = sweep_of([1.0] * 40)
    trials["a.learning_rate"] = random.uniform(size=40)
    trials["fd/nfe_2"] = 1 + 3 * trials["a.learning_rate"] + 0.01 * random.normal(size=40)
    table = importance(trials, "fd/nfe_2")
    assert table["setting"].tolist()[0] == "a.learning_rate"
    assert table["importance"][0] > 0.5
    assert abs(table["importance"][1]) < 0.1
    assert table.attrs["explained"] > 0.8


def test_importance_of_noise_is_called_untold():
    random = np.random.default_rng(0)
    trials = sweep_of([1.0] * 12)
    trials["fd/nfe_2"] = random.normal(size=12)
    table = importance(trials, "fd/nfe_2")
    assert table.attrs["explained"] < 0
    text = figures.importance_figure(table, "fd/nfe_2").layout.xaxis.title.text
    assert "too few to tell" in text.replace("<br>", " ")


def test_early_stopping_counts_as_a_setting_of_its_own():
    trials = sweep_of([1.0 + k for k in range(8)])
    trials["trained_steps"] = [1000.0, 200.0] * 4
    assert "trained_steps" in set(importance(trials, "fd/nfe_2")["setting"])


def test_few_trials_have_no_importance():
    assert importance(sweep_of([1.0, 2.0, 3.0]), "fd/nfe_2").empty


# ----------------------------------------------------------------------------------------------------- lineage


def trace(**inputs: dict[str, str]) -> pd.DataFrame:
    about = {"stage": None, "status": "finished", "start": pd.NaT, "commit": "abcdef0123", "dirty": False, "data": {}}
    return pd.DataFrame(
        [
            {"run_id": name, "name": name, **about, "inputs": read, "settings": {} if read else {"data.name": "digits"}}
            for name, read in inputs.items()
        ]
    )


def test_lineage_lies_in_layers_from_data_to_result():
    figure = figures.lineage_figure(
        trace(student={"t": "teacher", "l": "latents"}, teacher={"l": "latents"}, latents={})
    )
    heights = {note.text.split("<br>")[0]: note.y for note in figure.layout.annotations}
    assert heights == {"student": 0, "teacher": 1, "latents": 2, "data": 3}
    arrows = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(arrows) == 3  # that from latents to the student is implied


def test_lineage_tells_of_changes_that_were_not_committed():
    table = trace(student={}).assign(dirty=True)
    hovers = [text for part in figures.lineage_figure(table).data for text in part.hovertext or ()]
    assert any("commit abcdef0123, with changes not committed" in text for text in hovers)


# --------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "figure",
    [
        figures.quality_figure(evaluations().reindex(columns=["run_id", "model", "distance", "sweep", "nfe"])),
        figures.cost_figure(evaluations().reindex(columns=["run_id", "model", "distance", "sweep", "nfe"])),
        figures.samples_figure(pictures().head(0)),
        figures.parallel_figure(sweep_of([np.nan]), "fd/nfe_2"),
        figures.confirmation_figure(sweep_of([1.0]), "fd/nfe_2"),
        figures.importance_figure(importance(sweep_of([1.0]), "fd/nfe_2"), "fd/nfe_2"),
        figures.pareto_figure(sweep_of([1.0])),
        figures.lineage_figure(pd.DataFrame()),
    ],
)
def test_a_figure_without_data_says_what_is_missing_and_what_makes_it(figure):
    assert not figure.data
    text = figure.layout.annotations[0].text.replace("<br>", " ")
    assert "dvc repro" in text or "sweep" in text


def test_long_titles_are_broken_for_a_phone():
    figure = figures.quality_figure(evaluations(("a", "emd", 1.0)), "fd")
    assert max(len(line) for line in figure.layout.title.text.split("<br>")) <= 42


def test_numbers_are_written_as_people_read_them():
    assert (small_time(4.1e-4), small_time(2.0)) == ("410 µs", "2 s")
    assert [duration(seconds) for seconds in (41, 192, 7500, np.nan)] == [
        "41 s", "3 min 12 s", "2 h 5 min", "not finished",
    ]  # fmt: skip
    assert with_interval(0.6123, 0.1) == "0.612 ± 0.1"
    assert with_interval(0.6123, np.nan) == "0.612"


def test_logarithmic_axes_have_ticks_at_one_two_and_five():
    assert log_axis(pd.Series([0.3, 4.0]))["ticktext"] == ["0.5", "1", "2"]
    assert log_axis(pd.Series([0.01, 1000.0]))["ticktext"] == ["0.01", "0.1", "1", "10", "100", "1000"]


def test_words_stand_for_keys():
    assert names.measure("fd/nfe_2") == "Fréchet distance to training data at 2 network calls"
    assert names.setting("distill.emd.tangent_warmup") == "distill › emd › tangent warmup"
    assert names.title("my_model") == "my model"
    assert names.colour("my_model") == names.colour("my_model") != names.colour("emd")


def test_a_setting_that_some_trials_lack_is_a_kind_of_its_own():
    trials = sweep_of([1.0, 2.0]).assign(**{"a.law": ["normal", None]})
    figure = figures.parallel_figure(trials, "fd/nfe_2")
    assert {"normal", "not set"} <= {note.text for note in figure.layout.annotations}
