"""What evaluations measured: quality against network calls, against seconds, against λ and γ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from dashboards import names
from dashboards.figures.style import (
    FAINT,
    broken,
    day,
    empty,
    log_axis,
    measured_ticks,
    row_titles,
    small_time,
    styled,
    with_interval,
)

EVALUATE = "`dvc repro` evaluates every model."
_DASHES = ["solid", "dash", "dot", "dashdot"]
_AGAINST = {
    "guidance": ("guidance_scale", "guidance scale λ"),
    "gamma": ("gamma", "γ: 0 no fresh noise, 1 all of it fresh"),
}


def quality_figure(metrics: pd.DataFrame, measure: str | None = None) -> go.Figure:
    """One measure against the number of network calls, with its 95 % band over sampling seeds, a line a run.

    Args:
        metrics: as `frames.metrics_by_nfe` reads it.
        measure: None takes the distance.
    """
    rows = metrics[metrics["sweep"] == "quality"]
    measure = measure or distance_of(metrics)
    heading = f"{names.measure(measure)} against network calls"
    if rows.empty or measure not in rows:
        return empty(heading, "No evaluation of a model is recorded here.", EVALUATE)
    figure = go.Figure()
    for label, line, run in _runs(rows):
        run = run.sort_values("nfe")
        half_width = run.get(f"{measure}_ci95", pd.Series(float("nan"), run.index))
        _add_band(figure, run["nfe"], run[measure], half_width, line["color"], label)
        hover = [
            f"{label}<br>{names.network_calls(calls)}: {with_interval(value, ci)}"
            for calls, value, ci in zip(run["nfe"], run[measure], half_width, strict=True)
        ]
        figure.add_scatter(
            x=run["nfe"], y=run[measure], name=label, legendgroup=label, line=line, mode="lines+markers",
            hovertext=hover, hoverinfo="text",
        )  # fmt: skip
    floor = metrics.attrs.get("floor", {}).get(measure)
    if floor:
        _add_floor(figure, rows["nfe"], floor)
    styled(figure, heading, x="network calls for one sample")
    figure.update_xaxes(**measured_ticks(rows["nfe"]))
    if names.lower_is_better(measure):
        figure.update_yaxes(**log_axis(pd.Series([*rows[measure], *([floor] if floor else [])])))
    return figure


def cost_figure(metrics: pd.DataFrame, measure: str | None = None) -> go.Figure:
    """One measure against the measured seconds per image; what nothing else beats in both is the Pareto front."""
    measure = measure or distance_of(metrics)
    heading = f"{names.measure(measure)} against time"
    rows = metrics[metrics["sweep"] == "quality"]
    rows = rows.dropna(subset=["seconds_per_image"]) if "seconds_per_image" in rows else rows.head(0)
    if rows.empty or measure not in rows:
        missing = "No evaluation here has measured the seconds an image takes."
        return empty(heading, missing, EVALUATE)
    figure = go.Figure()
    sign = 1 if names.lower_is_better(measure) else -1
    best = pareto_front(rows["seconds_per_image"], sign * rows[measure])
    front = rows[best].sort_values("seconds_per_image")
    figure.add_scatter(
        x=front["seconds_per_image"], y=front[measure], mode="lines+markers", name="Pareto front",
        line={"color": "#56B4E9", "width": 6, "shape": "hv"}, marker={"size": 20, "color": "#56B4E9"}, opacity=0.45,
        hoverinfo="skip",
    )  # fmt: skip
    for label, line, run in _runs(rows):
        run = run.sort_values("seconds_per_image")
        hover = [_cost_words(label, row, measure, bool(best[row.Index])) for row in run.itertuples()]
        figure.add_scatter(
            x=run["seconds_per_image"], y=run[measure], mode="lines+markers+text", name=label, line=line,
            text=run["nfe"].astype(str), textposition="top center", textfont={"color": line["color"]},
            hovertext=hover, hoverinfo="text",
        )  # fmt: skip
    styled(figure, heading, x="time an image, on one machine (numbers: network calls)")
    figure.update_xaxes(**log_axis(rows["seconds_per_image"], small_time))
    if sign == 1:
        figure.update_yaxes(**log_axis(rows[measure]))
    return figure


def sweep_of_sampling_figure(metrics: pd.DataFrame, sweep: str) -> go.Figure:
    """The distance, precision and recall, under one another, against λ (`guidance`) or γ (`gamma`)."""
    column, axis = _AGAINST[sweep]
    heading = "Against the guidance scale λ" if sweep == "guidance" else "Against γ, the share of fresh noise"
    rows = metrics[(metrics["sweep"] == sweep) & metrics[column].notna()]
    distance = distance_of(metrics)
    measures = [name for name in (distance, "precision", "recall") if name in rows and rows[name].notna().any()]
    if rows.empty or not measures:
        return empty(heading, f"No evaluation here has measured this {sweep} sweep.", EVALUATE)
    titles = [names.measure(name) for name in measures]
    figure = make_subplots(len(measures), 1, shared_xaxes=True, vertical_spacing=0.09, subplot_titles=titles)
    row_titles(figure)
    for place, measure in enumerate(measures, start=1):
        for label, line, run in _runs(rows):
            run = run.sort_values(column)
            half_width = run.get(f"{measure}_ci95", pd.Series(float("nan"), run.index))
            name = f"{label}, {names.network_calls(int(run['nfe'].iloc[0]))}"
            words = "guidance scale" if sweep == "guidance" else "γ"
            hover = [
                f"{name}<br>{words} {at:g}: {names.measure(measure)} {with_interval(value, ci)}"
                for at, value, ci in zip(run[column], run[measure], half_width, strict=True)
            ]
            _add_band(figure, run[column], run[measure], half_width, line["color"], label, row=place)
            figure.add_scatter(
                x=run[column], y=run[measure], name=name, legendgroup=label, showlegend=place == 1, line=line,
                mode="lines+markers", hovertext=hover, hoverinfo="text", row=place, col=1,
            )  # fmt: skip
    styled(figure, heading, height=220 * len(measures) + 140)
    figure.update_layout(margin_t=figure.layout.margin.t + 28, legend_y=-0.11)
    figure.update_xaxes(tickvals=sorted(rows[column].unique()))
    figure.update_xaxes(title_text=broken(axis), row=len(measures), col=1)
    return figure


def quality_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The quality rows as a person reads them, for pages that also want figures in text."""
    rows = metrics[metrics["sweep"] == "quality"]
    if rows.empty:
        return pd.DataFrame()
    table = pd.DataFrame({"Model": _labels(rows), "Network calls": rows["nfe"].astype(int)})
    for name in [name for name in names.in_tables(distance_of(metrics)) if name in rows]:
        half_widths = rows.get(f"{name}_ci95", pd.Series(float("nan"), rows.index))
        table[names.measure(name)] = [with_interval(*pair) for pair in zip(rows[name], half_widths, strict=True)]
    seconds = rows["seconds_per_image"] if "seconds_per_image" in rows else pd.Series(float("nan"), rows.index)
    if seconds.notna().any():
        table["Time an image"] = ["" if pd.isna(value) else small_time(value) for value in seconds]
    return table


def distance_of(metrics: pd.DataFrame) -> str:
    """The name of the measure that is the distance: fd of images, jsd of points."""
    known = metrics["distance"].dropna()
    return "fd" if known.empty else str(known.iloc[0])


def pareto_front(*costs: pd.Series) -> pd.Series:
    """Which rows no other row beats: none is at most as costly in every way and less in one. Lower is better.

    A row with an unknown cost is never on the front.
    """
    table = pd.concat(costs, axis=1).astype(float)
    values = table.to_numpy()
    beaten = [bool(((values <= row).all(axis=1) & (values < row).any(axis=1)).any()) for row in values]
    return table.notna().all(axis=1) & ~pd.Series(beaten, index=table.index)


def _runs(rows: pd.DataFrame) -> Iterator[tuple[str, dict, pd.DataFrame]]:
    """Label, line and rows of each run. Colour tells the model; runs of one model differ in their dashes."""
    labels = _labels(rows)
    seen: dict[str, int] = {}
    for _, run in rows.groupby("run_id", sort=False):
        model = str(run["model"].iloc[0])
        dash = _DASHES[seen.get(model, 0) % len(_DASHES)]
        seen[model] = seen.get(model, 0) + 1
        yield labels[run.index[0]], {"color": names.colour(model), "dash": dash, "width": 2}, run


def _labels(rows: pd.DataFrame) -> pd.Series:
    """A model's title; with the time of its evaluation where two evaluations of it are shown."""
    several = rows.groupby("model")["run_id"].nunique()
    words = [
        names.title(row.model) + (f", {day(row.start)}" if several[row.model] > 1 else "") for row in rows.itertuples()
    ]
    return pd.Series(words, index=rows.index)


def _add_band(
    figure: go.Figure,
    x: pd.Series,
    y: pd.Series,
    half_width: pd.Series,
    colour: str,
    group: str,
    row: int | None = None,
) -> None:
    """The 95 % interval as a pale band. Cut at a twentieth of the value: a logarithmic axis knows no zero."""
    known = half_width.notna()
    if not known.any():
        return
    x, y, half_width = x[known], y[known], half_width[known]
    lower = (y - half_width).clip(lower=y / 20)
    place: dict[str, int] = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        x=[*x, *x[::-1]], y=[*(y + half_width), *lower[::-1]], fill="toself", mode="lines", line={"width": 0},
        fillcolor="rgba({},{},{},0.15)".format(*hex_to_rgb(colour)), legendgroup=group, showlegend=False,
        name=f"{group}: 95 % interval", hoverinfo="skip", **place,
    )  # fmt: skip


def _add_floor(figure: go.Figure, x: pd.Series, floor: float) -> None:
    """What real training data score: no model is asked to do better."""
    figure.add_scatter(
        x=[x.min(), x.max()], y=[floor, floor], mode="lines", name="Real training data",
        line={"color": FAINT, "dash": "dot", "width": 1.5}, hoverinfo="text",
        hovertext=[f"Real training data: {floor:.3g}"] * 2,
    )  # fmt: skip


def _cost_words(label: str, row: object, measure: str, on_front: bool) -> str:
    value, ci = getattr(row, measure), getattr(row, f"{measure}_ci95", None)
    lines: Sequence[str] = [
        label,
        f"{names.network_calls(row.nfe)}, {small_time(row.seconds_per_image)} an image",  # type: ignore[attr-defined]
        f"{names.measure(measure)}: {with_interval(value, ci)}",
    ]
    return "<br>".join([*lines, *(["nothing measured here is both faster and better"] if on_front else [])])
