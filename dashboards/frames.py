"""An MLflow experiment of this project as tidy pandas frames, for the dashboard and for notebooks.

    from dashboards import frames
    store = "sqlite:///mlruns/mlflow.db"
    frames.runs(store)                      # a row a run
    frames.metrics_by_nfe(store)            # a row for each model and setting that was measured
    frames.trials(store, "distill")         # a row a trial of a sweep

Needs pandas and mlflow and nothing of this project. Every function takes the URI of a store and raises
`StoreError` with one line where it cannot be read. Times are UTC, durations seconds, λ is `guidance_scale`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from dashboards.names import titles
from dashboards.store import EXPERIMENT, StoreError, artefact, artefacts, read_history, read_run, read_runs

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = [
    "EXPERIMENT",
    "StoreError",
    "lineage",
    "metrics_by_nfe",
    "newest_evaluations",
    "runs",
    "sample_pictures",
    "training_curves",
    "trial_curves",
    "trials",
]

_RUN_COLUMNS = ["run_id", "name", "kind", "stage", "model", "status", "start", "end", "seconds"]
_RUN_COLUMNS += ["parent_run_id", "sweep", "commit", "dirty"]
_TRIAL_COLUMNS = ["sweep", "sweep_run_id", "run_id", "name", "trial", "kind", "status", "start", "end", "seconds"]
_TRIAL_COLUMNS += ["trained_steps", "confirms", "seed"]
_STATUS = {"FINISHED": "finished", "RUNNING": "running", "SCHEDULED": "running", "FAILED": "failed", "KILLED": "failed"}
_MOST_NESTING = 50  # a text that could nest deeper is no setting, and would end the parser at the limit of recursion
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_PICTURE = re.compile(r"nfe_(\d+)(?:_scale_(\d+(?:\.\d+)?))?\.png")
_BINNED = re.compile(r"(?P<quantity>.+)/(?P<variable>[a-z]+)_(?P<low>\d\.\d+)")


# -------------------------------------------------------------------------------------------------------- runs


def runs(uri: str, experiment: str = EXPERIMENT) -> pd.DataFrame:
    """A row a run, newest first.

    Columns: run_id, name, kind (stage, sweep, trial, confirmation), stage (as in dvc.yaml: `distill@emd`), model
    (of an evaluation), status (finished, running, failed), start, end, seconds, parent_run_id, sweep, commit,
    dirty (tracked files differed from the commit); then `params.<dotted key>` with the setting's own type, and
    `metrics.<name>` with the last value. A run without `ayf.kind` counts as a stage.
    """
    rows = [_run_row(run) for run in read_runs(uri, experiment)]
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=_RUN_COLUMNS + [name for name in frame if name not in _RUN_COLUMNS])


def newest_evaluations(table: pd.DataFrame) -> list[str]:
    """Of `runs`: the id of each model's newest finished evaluation, models in the order of their titles."""
    done = table[(table["kind"] == "stage") & table["model"].notna() & (table["status"] == "finished")]
    newest = done.drop_duplicates("model")
    order = {name: place for place, name in enumerate(titles())}
    return newest.sort_values("model", key=lambda names: names.map(lambda name: order.get(name, 99)))["run_id"].tolist()


def _run_row(run: Run) -> dict[str, Any]:
    tags = run.data.tags
    row = {**_times(run), "stage": tags.get("dvc.stage"), "model": _model(tags), "sweep": tags.get("ayf.sweep")}
    row |= {"kind": tags.get("ayf.kind", "stage"), "parent_run_id": tags.get("mlflow.parentRunId")}
    row |= {"commit": tags.get("mlflow.source.git.commit"), "dirty": tags.get("ayf.git_dirty") == "true"}
    row |= {f"params.{key}": _value(text) for key, text in run.data.params.items()}
    return row | {f"metrics.{k}": v for k, v in run.data.metrics.items() if not k.startswith("system/")}


def _times(run: Run) -> dict[str, Any]:
    start, end = (_time(at) for at in (run.info.start_time, run.info.end_time))
    seconds = (end - start).total_seconds() if end is not pd.NaT else float("nan")
    status = _STATUS.get(run.info.status, "failed")
    who = {"run_id": run.info.run_id, "name": run.info.run_name, "status": status}
    return {**who, "start": start, "end": end, "seconds": seconds}


def _time(milliseconds: int | None) -> Any:
    return pd.Timestamp(milliseconds, unit="ms", tz="UTC") if milliseconds else pd.NaT


def _model(tags: dict[str, str]) -> str | None:
    """The model an evaluation is of; older runs say it by their stage alone."""
    base, _, item = tags.get("dvc.stage", "").partition("@")
    return (tags.get("ayf.model") or item or None) if base == "evaluate" else None


def _value(text: str) -> Any:
    """A setting as params.yaml would read it; `1e-4`, a word to YAML 1.1, is a number too."""
    if _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    if sum(map(text.count, "[{-")) > _MOST_NESTING:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


# ------------------------------------------------------------------------------------------------- evaluations


def metrics_by_nfe(uri: str, run_ids: Sequence[str] | None = None, experiment: str = EXPERIMENT) -> pd.DataFrame:
    """A row for each evaluation and setting measured: what `evaluation.json` of the runs says.

    Args:
        run_ids: evaluations to read; None reads each model's newest finished one.

    Columns: run_id, model, start, commit, distance (name of the measure that is the distance: fd or jsd), sweep
    (quality, guidance, gamma), nfe, guidance_scale, gamma, each measure with the half width of its 95 % interval
    as `<measure>_ci95`, and seconds_per_image where the run measured it (quality only). `frame.attrs["floor"]` has the
    measures of real data. Runs without the document, such as old ones, have no rows.
    """
    if run_ids is None:
        run_ids = newest_evaluations(runs(uri, experiment))
    rows: list[dict[str, Any]] = []
    floor: dict[str, float] = {}
    for run_id in run_ids:
        content = artefact(uri, run_id, "evaluation.json")
        if content is None:
            continue
        try:
            document, run = json.loads(content), read_run(uri, run_id)
            rows += [_measured_row(row, document, run) for row in document["rows"]]
            floor = floor or document.get("floor", {})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            continue  # in a store that many write to, a file of this name may be anybody's
    columns = ["run_id", "model", "start", "commit", "distance", "sweep", "nfe", "guidance_scale", "gamma"]
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=columns + [name for name in frame if name not in columns])
    frame["guidance_scale"] = frame["guidance_scale"].astype(float)
    frame.attrs["floor"] = floor
    return frame


def _measured_row(row: dict[str, Any], document: dict[str, Any], run: Run) -> dict[str, Any]:
    about = {"run_id": run.info.run_id, "model": document["model"], "start": _time(run.info.start_time)}
    about |= {"commit": run.data.tags.get("mlflow.source.git.commit"), "distance": document["distance"]}
    seconds = run.data.metrics.get(f"seconds_per_image/nfe_{row['nfe']}") if row["sweep"] == "quality" else None
    return {**about, **row, "seconds_per_image": float("nan") if seconds is None else seconds}


def sample_pictures(uri: str, run_ids: Sequence[str]) -> pd.DataFrame:
    """A row a picture of samples: run_id, model, nfe, guidance_scale (NaN: has none), picture (a PNG as data URI)."""
    rows = []
    for run_id in run_ids:
        model = _model(read_run(uri, run_id).data.tags) or run_id[:8]
        for path in artefacts(uri, run_id, "samples"):
            match = _PICTURE.fullmatch(path.rpartition("/")[2])
            content = artefact(uri, run_id, path) if match else None
            if match and content is not None:
                scale = float(match[2]) if match[2] else float("nan")
                picture = "data:image/png;base64," + base64.b64encode(content).decode()
                rows.append([run_id, model, int(match[1]), scale, picture])
    return pd.DataFrame(rows, columns=["run_id", "model", "nfe", "guidance_scale", "picture"])


def training_curves(uri: str, run_id: str) -> pd.DataFrame:
    """A training by its steps, long: metric, quantity, variable, low, high, step, value.

    `loss` has no variable; `tangent_norm/interval_0.25` is the quantity tangent_norm over the variable interval
    (t − s) in the bin from low = 0.25 to high = 0.5. Metrics of the machine and of single values are left out.
    """
    logged = [name for name in read_run(uri, run_id).data.metrics if name == "loss" or _BINNED.fullmatch(name)]
    rows = []
    for name in logged:
        match = _BINNED.fullmatch(name)
        about = [match["quantity"], match["variable"], float(match["low"])] if match else [name, None, float("nan")]
        rows += [[name, *about, step, value] for step, value in read_history(uri, run_id, name)]
    frame = pd.DataFrame(rows, columns=["metric", "quantity", "variable", "low", "step", "value"])
    frame.insert(4, "high", frame["low"] + _bin_widths(frame))
    return frame


def _bin_widths(frame: pd.DataFrame) -> pd.Series:
    """The distance between the lower ends of a variable's bins, which are of one width."""
    widths = {
        variable: min((b - a for a, b in pairwise(lows)), default=1.0)
        for variable, part in frame.dropna(subset="variable").groupby("variable")
        for lows in [sorted(part["low"].unique())]
    }
    return frame["variable"].map(widths).astype(float)


# ------------------------------------------------------------------------------------------------------ sweeps


def trials(uri: str, sweep: str, experiment: str = EXPERIMENT) -> pd.DataFrame:
    """A row for each trial and confirmation of a sweep, in order of their start.

    Args:
        sweep: its name, of which the newest is taken, or the id of its run.

    Columns: sweep, sweep_run_id, run_id, name, trial (number; of a confirmation that of the trial it confirms, or NaN),
    kind (trial, confirmation), status (running, finished, stopped = early by the scheduler, failed), start, end,
    seconds, trained_steps, confirms (of a confirmation: best or current settings), seed (of a confirmation); one column
    a searched setting, by dotted key, and one a metric with its last value. `frame.attrs` names them: "settings",
    "metrics", "modes" (min or max, in the order of the metrics); its "name" is the sweep's as MLflow shows it.

    Raises:
        StoreError: there is no such sweep.
    """
    found = read_runs(uri, experiment)
    parent = _sweep_run(found, sweep, uri)
    tags = parent.data.tags
    metrics, modes = (_listed(tags.get(f"ayf.{name}", "")) for name in ("metric", "mode"))
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    children = [run for run in children if run.data.tags.get("ayf.kind") in ("trial", "confirmation")]
    searched = [run for run in children if run.data.tags["ayf.kind"] == "trial"]
    settings = list(dict.fromkeys(key for run in searched for key in run.data.params))
    rows = [_trial_row(run, parent, settings, metrics) for run in reversed(children)]
    extra = [key for key in settings if key not in _TRIAL_COLUMNS]
    frame = pd.DataFrame(rows, columns=_TRIAL_COLUMNS + extra + metrics)
    typed = list(dict.fromkeys(["seed", *settings]))
    frame[typed] = frame[typed].convert_dtypes()  # whole numbers stay whole beside confirmations that have none
    frame.attrs |= {
        "name": parent.info.run_name,
        "settings": settings,
        "metrics": metrics,
        "modes": modes or ["min"] * len(metrics),
    }
    return frame


def trial_curves(uri: str, table: pd.DataFrame) -> pd.DataFrame:
    """How the metrics of `trials` went, long: run_id, trial, status, metric, step, value."""
    rows = [
        [row.run_id, row.trial, row.status, metric, step, value]
        for row in table[table["kind"] == "trial"].itertuples()
        for metric in table.attrs["metrics"]
        for step, value in read_history(uri, row.run_id, metric)
    ]
    return pd.DataFrame(rows, columns=["run_id", "trial", "status", "metric", "step", "value"])


def _sweep_run(found: Iterable[Run], sweep: str, uri: str) -> Run:
    sweeps = [run for run in found if run.data.tags.get("ayf.kind") == "sweep"]
    for run in sweeps:  # newest first
        if sweep in (run.info.run_id, run.data.tags.get("ayf.sweep")):
            return run
    names = sorted({run.data.tags.get("ayf.sweep", run.info.run_id) for run in sweeps})
    there = f"it has {', '.join(names)}" if names else "it has none yet: `ayf sweep NAME` makes one"
    raise StoreError(f"no sweep {sweep} in the MLflow store {uri}; {there}")


def _trial_row(run: Run, parent: Run, settings: list[str], metrics: list[str]) -> dict[str, Any]:
    tags = run.data.tags
    params = {key: _value(text) for key, text in run.data.params.items()}
    with suppress(ValueError, TypeError, RecursionError):
        params |= json.loads(
            tags.get("ayf.point", "{}")
        )  # exact, and the latest of a trial that changes while it trains
    row = {**_times(run), "sweep": parent.data.tags.get("ayf.sweep"), "sweep_run_id": parent.info.run_id}
    row |= {"kind": tags["ayf.kind"], "status": tags.get("ayf.trial.status") or row["status"]}
    row |= {"trial": pd.to_numeric(tags.get("ayf.trial"), errors="coerce"), "confirms": tags.get("ayf.settings")}
    row |= {"trained_steps": run.data.metrics.get("trained_steps", float("nan"))}
    row |= {key: params.get(key) for key in ["seed", *settings]}
    return row | {name: run.data.metrics.get(name, float("nan")) for name in metrics}


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


# ----------------------------------------------------------------------------------------------------- lineage


def lineage(uri: str, run_id: str) -> pd.DataFrame:
    """A run and everything it came from, the run itself first, then each run after all that used it.

    Columns: run_id, name, stage, status, start, commit, dirty, inputs (path -> id of the run that made it), data
    (name -> digest of each data set read), settings (dotted key -> value). An upstream run that was deleted is
    left out, the path that named it stays in `inputs`.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()

    def visit(current: str) -> None:
        if current in seen:
            return
        seen.add(current)
        run = _run_or_none(uri, current) if len(seen) > 1 else read_run(uri, current)
        if run is not None:
            row = _lineage_row(run)
            for upstream in row["inputs"].values():
                visit(upstream)
            rows.append(row)

    visit(run_id)
    return pd.DataFrame(reversed(rows))


def _run_or_none(uri: str, run_id: str) -> Run | None:
    try:
        return read_run(uri, run_id)
    except StoreError:
        return None


def _lineage_row(run: Run) -> dict[str, Any]:
    tags = run.data.tags
    about = {"run_id": run.info.run_id, "name": run.info.run_name, "stage": tags.get("dvc.stage")}
    about |= {"status": _STATUS.get(run.info.status, "failed"), "start": _time(run.info.start_time)}
    about |= {"commit": tags.get("mlflow.source.git.commit"), "dirty": tags.get("ayf.git_dirty") == "true"}
    prefix = "ayf.upstream."
    inputs = {key.removeprefix(prefix): value for key, value in tags.items() if key.startswith(prefix)}
    data = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs} if run.inputs else {}
    settings = {key: _value(text) for key, text in run.data.params.items()}
    return about | {"inputs": inputs, "data": data, "settings": settings}
