"""The parts of a page, each made of frames: what the static page and the served one both show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import plotly.graph_objects as go

from dashboards import figures, names
from dashboards.figures.quality import distance_of
from dashboards.figures.style import day, duration
from dashboards.importance import importance
from dashboards.verdict import untrained


@dataclass(frozen=True)
class Panel:
    """Figures, and a table under them, that are shown together under one choice; drawn when they are shown."""

    label: str
    draw: Callable[[], Sequence[go.Figure]]
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class View:
    """A titled part of a page. Of several panels a person chooses one by its label."""

    title: str
    text: str
    panels: Sequence[Panel] = field(default_factory=list)
    choice: str = "Show"


def quality(metrics: pd.DataFrame) -> View:
    """A panel a measure: against network calls, and against time."""
    measures = names.in_tables(distance_of(metrics))
    measured = [name for name in measures if name in metrics and metrics[name].notna().any()] or measures[:1]
    table = figures.quality_table(metrics)
    panels = [Panel(names.measure(name), partial(_quality_figures, metrics, name), table) for name in measured]
    text = "Each point is a mean over sampling seeds; the band is its 95 % interval."
    teacher = metrics[(metrics["model"] == "teacher") & (metrics["sweep"] == "quality")]
    warning = untrained(teacher.select_dtypes("number").min().to_dict(), metrics.attrs.get("floor", {}))
    if warning:
        text = f"{warning} {text}"
    return View("Quality and cost", text, panels, "Measure")


def _quality_figures(metrics: pd.DataFrame, measure: str) -> list[go.Figure]:
    return [figures.quality_figure(metrics, measure), figures.cost_figure(metrics, measure)]


def sampling(metrics: pd.DataFrame) -> View:
    """The distance, precision and recall against λ and against γ."""

    def draw() -> list[go.Figure]:
        return [figures.sweep_of_sampling_figure(metrics, sweep) for sweep in ("guidance", "gamma")]

    return View("Guidance and γ", "How the choices left at sampling time change quality.", [Panel("", draw)])


def samples(pictures: pd.DataFrame) -> View:
    """A figure a model, with its sliders."""
    parts = [part for _, part in pictures.groupby("run_id", sort=False)] or [pictures]

    def draw() -> list[go.Figure]:
        return [figures.samples_figure(part) for part in parts]

    return View("Samples", "The same noise in the same place everywhere. Move the sliders.", [Panel("", draw)])


def training(curves: Mapping[str, pd.DataFrame]) -> View:
    """A panel a training: its quantities in bins of t − s and of t."""
    panels = [Panel(label, partial(_training_figures, table)) for label, table in (curves or {"": _NO_CURVES}).items()]
    text = "A normalised loss is constant by construction: what is measured in bins of time tells how training goes."
    return View("Training", text, panels, "Training")


def _training_figures(curves: pd.DataFrame) -> list[go.Figure]:
    variables = {names.VARIABLES.get(name, name) for name in curves["variable"].dropna()}
    ordered = sorted(variables, key=lambda name: (name != "t − s", name)) or ["t − s"]
    return [figures.training_figure(curves, variable) for variable in ordered]


def lineage(traces: Mapping[str, pd.DataFrame]) -> View:
    """A panel a model: what it came from."""
    panels = [Panel(label, partial(_lineage_figures, table)) for label, table in (traces or {"": _NOTHING}).items()]
    text = "Data on top, the result at the bottom; touch a box for its settings, commit and inputs."
    return View("Lineage", text, panels, "Result")


def _lineage_figures(lineage: pd.DataFrame) -> list[go.Figure]:
    return [figures.lineage_figure(lineage)]


def sweep(trials: pd.DataFrame, curves: pd.DataFrame | None = None) -> View:
    """A panel a metric of the sweep. Learning curves are drawn where their histories are given."""
    name = str(trials.attrs.get("name") or "sweep")
    table = figures.trials_table(trials)
    panels = [
        Panel(names.measure(metric), partial(_sweep_figures, trials, curves, metric), table)
        for metric in trials.attrs["metrics"]
    ]
    return View(name[0].upper() + name[1:], _sweep_words(trials), panels, "Metric")


def _sweep_figures(trials: pd.DataFrame, curves: pd.DataFrame | None, metric: str) -> list[go.Figure]:
    drawn = [figures.parallel_figure(trials, metric), figures.importance_figure(importance(trials, metric), metric)]
    both = trials.attrs["metrics"][:2]
    if len(both) == 2 and trials[both].notna().all(axis=1).any():
        drawn.append(figures.pareto_figure(trials))
    if curves is not None and (curves.empty or curves["step"].nunique() > 1):  # a search without training has none
        drawn.append(figures.learning_curves_figure(curves, trials, metric))
    drawn.append(figures.timeline_figure(trials))
    if (trials["kind"] == "confirmation").any():
        drawn.append(figures.confirmation_figure(trials, metric))
    return drawn


def _sweep_words(trials: pd.DataFrame) -> str:
    """How many trials, how they ended, and the best of them."""
    rows = trials[trials["kind"] == "trial"]
    counts = rows["status"].value_counts()
    ends = ", ".join(f"{count} {names.STATUS_WORDS.get(status, status)}" for status, count in counts.items())
    words = [f"{len(rows)} trials" + (f": {ends}." if ends else ".")]
    for metric in trials.attrs["metrics"]:
        best = figures.best_trial(trials, metric)
        if best is not None:
            row = trials.loc[best]
            chosen = ", ".join(f"{key} = {figures.short(row[key])}" for key in trials.attrs["settings"])
            words.append(f"Best {names.measure(metric)}: {row[metric]:.4g}, trial {row['trial']:g} ({chosen}).")
    return " ".join(words)


def runs_table(table: pd.DataFrame, most: int = 200) -> pd.DataFrame:
    """Of `frames.runs`: the newest as a person reads them."""
    rows = table.head(most)
    commits = [str(commit)[:7] if isinstance(commit, str) else "unknown" for commit in rows["commit"]]
    changed = [", changed" if dirty else "" for dirty in rows["dirty"]]
    return pd.DataFrame(
        {
            "Run": rows["name"].tolist(),
            "Kind": rows["kind"].tolist(),
            "Began (UTC)": [day(at) for at in rows["start"]],
            "Took": [duration(seconds) for seconds in rows["seconds"]],
            "Status": rows["status"].tolist(),
            "Commit": [commit + word for commit, word in zip(commits, changed, strict=True)],
            "Id": rows["run_id"].tolist(),
        }
    )


def runs_shown(metrics: pd.DataFrame) -> pd.DataFrame:
    """Which evaluations the figures are of: a page may be older than the store."""
    rows = metrics.drop_duplicates("run_id")
    return pd.DataFrame(
        {
            "Model": [names.title(model) for model in rows["model"]],
            "Evaluated (UTC)": [day(at) for at in rows["start"]],
            "Commit": [str(commit)[:7] if isinstance(commit, str) else "unknown" for commit in rows["commit"]],
            "Run": rows["run_id"].tolist(),
        }
    )


_NOTHING = pd.DataFrame()
_NO_CURVES = pd.DataFrame(columns=["metric", "quantity", "variable", "low", "high", "step", "value"])
