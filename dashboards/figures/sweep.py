"""A sweep: what was searched, what mattered, what ran when, how trials went, what was confirmed."""

from __future__ import annotations

import math
from collections.abc import Hashable

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dashboards import names
from dashboards.figures.quality import pareto_front
from dashboards.figures.style import FAINT, INK, day, duration, empty, log_axis, styled

SWEEP = "`ayf sweep NAME` makes trials; this page fills as they report."
_NAMED = 5  # more kinds than that are not all named on their row
_VEIL = "rgba(255,255,255,0.8)"
_WIDE = 10.0  # a setting whose largest value is that many times its smallest is drawn on a logarithmic axis


def searched(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials proper, without confirmations."""
    return trials[trials["kind"] == "trial"]


def best_trial(trials: pd.DataFrame, metric: str) -> Hashable | None:
    """The index of the best trial that was not stopped or failed; None where no trial has a value.

    While none has finished, the best of those that have a value.
    """
    known = searched(trials).dropna(subset=[metric])
    whole = known[known["status"] == "finished"]
    known = whole if len(whole) else known
    if known.empty:
        return None
    return known[metric].idxmin() if mode_of(trials, metric) == "min" else known[metric].idxmax()


def mode_of(trials: pd.DataFrame, metric: str) -> str:
    """min or max: which way the metric is better."""
    return dict(zip(trials.attrs["metrics"], trials.attrs["modes"], strict=True)).get(metric, "min")


def trial_name(row: object) -> str:
    number = row.trial  # type: ignore[attr-defined]
    return f"trial {number:g}" if not pd.isna(number) else str(row.name)  # type: ignore[attr-defined]


def parallel_figure(trials: pd.DataFrame, metric: str) -> go.Figure:
    """Parallel coordinates, a row a setting and the metric below: a line is a trial, its colour the metric.

    Rows rather than columns, so that full names of settings fit a phone.
    """
    heading = "What was tried, and what came of it"
    known = searched(trials).dropna(subset=[metric])
    if known.empty:
        return empty(heading, f"No trial has reported this metric yet: {names.measure(metric)}.", SWEEP)
    rows = [*trials.attrs["settings"], metric]
    axes = {name: _positions(known[name]) for name in rows}
    figure = go.Figure()
    best = best_trial(trials, metric)
    order = known.sort_values(metric, ascending=mode_of(trials, metric) == "max").index  # the best on top
    heights = list(range(len(rows) - 1, -1, -1))
    for index in order:
        place = axes[metric][0][index]
        colour = sample_colorscale("Cividis", [place])[0]
        words = _trial_words(trials, index)
        figure.add_scatter(
            x=[axes[name][0][index] for name in rows], y=heights, mode="lines+markers", showlegend=False,
            line={"color": colour, "width": 4 if index == best else 1.5}, marker={"size": 8, "color": colour},
            opacity=1.0 if known.loc[index, "status"] == "finished" else 0.5,
            hovertext=[words] * len(rows), hoverinfo="text", name=trial_name(known.loc[index]),
        )  # fmt: skip
    for height, name in zip(heights, rows, strict=True):
        _add_row(figure, height, names.measure(name) if name == metric else names.setting(name), axes[name][1])
    styled(figure, heading, height=72 * len(rows) + 90)
    figure.update_xaxes(visible=False, range=[-0.04, 1.04], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.55, len(rows) - 0.35], fixedrange=True)
    figure.update_layout(margin={"l": 12, "r": 12, "t": 44, "b": 8})
    return figure


def _positions(values: pd.Series) -> tuple[pd.Series, list[tuple[float, str]]]:
    """Each value's place in [0, 1], and the ticks as (place, words)."""
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any() or values.map(lambda value: isinstance(value, bool)).any():
        words = values.map(lambda value: "not set" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value))
        kinds = sorted(words.unique())
        places = {kind: k / (len(kinds) - 1) if len(kinds) > 1 else 0.5 for k, kind in enumerate(kinds)}
        named = [*places.items()] if len(kinds) <= _NAMED else [(kinds[0], 0.0), (kinds[-1], 1.0)]
        return words.map(places), [(place, kind) for kind, place in named]
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        return pd.Series(0.5, numbers.index), [(0.5, f"{low:.4g}")]
    if low > 0 and high / low >= _WIDE:
        places = numbers.map(lambda value: math.log(value / low) / math.log(high / low))
        middle = math.sqrt(low * high)
    else:
        places, middle = (numbers - low) / (high - low), (low + high) / 2
    return places, [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")]


def _add_row(figure: go.Figure, height: float, title: str, ticks: list[tuple[float, str]]) -> None:
    figure.add_shape(type="line", x0=0, x1=1, y0=height, y1=height, line={"color": "#bbbbbb"}, layer="below")
    text = {"showarrow": False, "y": height}
    figure.add_annotation(text=f"<b>{title}</b>", x=0, xanchor="left", yshift=17, bgcolor=_VEIL, font_size=11, **text)
    for place, words in ticks:
        side = "left" if place == 0 else "right" if place == 1 else "center"
        figure.add_annotation(text=words, x=place, xanchor=side, yshift=-14, font={"color": FAINT, "size": 11}, **text)


def importance_figure(table: pd.DataFrame, metric: str) -> go.Figure:
    """Bars of `importance.importance` with their uncertainty; the words below say how far to trust them."""
    heading = f"What matters: {names.measure(metric)}"
    if table.empty:
        return empty("What matters", "To tell what matters takes six trials or more that differ.", SWEEP)
    words = ["training steps spent" if name == "trained_steps" else names.setting(name) for name in table["setting"]]
    rows = range(len(table) - 1, -1, -1)
    hover = [
        f"{name}<br>not knowing it makes the guess worse by {value:.0%} ± {error:.0%} of the variance"
        for name, value, error in zip(words, table["importance"], table["uncertainty"], strict=True)
    ]
    figure = go.Figure()
    figure.add_bar(
        x=table["importance"], y=list(rows), orientation="h", width=0.36, marker_color="#0072B2",
        error_x={"array": table["uncertainty"], "color": FAINT}, hovertext=hover, hoverinfo="text",
    )  # fmt: skip
    for row, name in zip(rows, words, strict=True):
        figure.add_annotation(
            text=name, x=0, xref="paper", y=row, yshift=20, xanchor="left", showarrow=False, bgcolor="white"
        )
    styled(figure, heading, x=_trust(table.attrs), height=56 * len(table) + 150)
    figure.update_yaxes(visible=False, range=[-0.6, len(table) - 0.2], fixedrange=True)
    figure.update_xaxes(tickformat=".0%")
    figure.update_layout(margin_b=96)
    return figure


def _trust(about: dict) -> str:
    explained, count = about["explained"], about["trials"]
    first = "share of the variance, ± over 16 random forests"
    if explained <= 0:
        return f"{first}; {count} trials: too few to tell, the settings do not predict trials not seen"
    return f"{first}; {count} trials; {explained:.0%} of unseen ones explained: a hint where to look, no proof"


def timeline_figure(trials: pd.DataFrame) -> go.Figure:
    """When each trial ran, coloured by how it ended. What still runs is drawn up to the last event known."""
    heading = "When the trials ran"
    rows = searched(trials)
    if rows.empty:
        return empty(heading, "This sweep has no trials yet.", SWEEP)
    last = max(rows["start"].max(), rows["end"].max()) if rows["end"].notna().any() else rows["start"].max()
    figure = go.Figure()
    for status, part in rows.groupby("status", sort=True):
        ended = names.STATUS_WORDS.get(status, status)
        ends = part["end"].fillna(last)
        steps = part["trained_steps"].map(lambda count: "" if pd.isna(count) else f"<br>{count:,.0f} training steps")
        hover = [
            f"{trial_name(row)}: {ended}<br>from {day(row.start)}, {duration(row.seconds)}{done}"
            for row, done in zip(part.itertuples(), steps, strict=True)
        ]
        figure.add_bar(
            base=part["start"].dt.tz_localize(None), x=(ends - part["start"]).dt.total_seconds() * 1000,
            y=[trial_name(row) for row in part.itertuples()], orientation="h", name=ended,
            marker_color=names.STATUS_COLOURS.get(status, FAINT), hovertext=hover, hoverinfo="text",
        )  # fmt: skip
    styled(figure, heading, x="time (UTC)", height=20 * len(rows) + 190)
    order = [trial_name(row) for row in rows.sort_values("start").itertuples()]
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], dtick=1)
    figure.update_xaxes(type="date", nticks=5)
    figure.update_layout(barmode="overlay", legend_y=-70 / (20 * len(rows) + 94))
    return figure


def learning_curves_figure(curves: pd.DataFrame, trials: pd.DataFrame, metric: str) -> go.Figure:
    """The metric of each trial by training step, coloured by how the trial ended; the best is black."""
    heading = f"{names.measure(metric)}, by step"
    rows = curves[curves["metric"] == metric]
    if rows.empty:
        return empty(heading, "No trial has reported this metric during training.", SWEEP)
    best = best_trial(trials, metric)
    best_id = None if best is None else trials.loc[best, "run_id"]
    figure = go.Figure()
    named: set[str] = set()
    for run_id, line in sorted(rows.groupby("run_id", sort=False), key=lambda pair: pair[0] == best_id):
        status = str(line["status"].iloc[0])
        name = "the best trial" if run_id == best_id else names.STATUS_WORDS.get(status, status)
        colour = INK if run_id == best_id else names.STATUS_COLOURS.get(status, FAINT)
        figure.add_scatter(
            x=line["step"], y=line["value"], mode="lines+markers", name=name, legendgroup=name,
            showlegend=name not in named, line={"color": colour, "width": 3.5 if run_id == best_id else 1.3},
            marker={"size": 5}, opacity=1.0 if run_id == best_id else 0.75,
            hovertemplate=f"trial {line['trial'].iloc[0]:g}, {names.STATUS_WORDS.get(status, status)}"
            "<br>step %{x}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
        named.add(name)
    styled(figure, heading, x="training step")
    if (rows["value"] > 0).all() and names.lower_is_better(metric.partition("/")[0]):
        figure.update_yaxes(**log_axis(rows["value"]))
    return figure


def pareto_figure(trials: pd.DataFrame) -> go.Figure:
    """The first two metrics against each other, with the trials that none beats in both."""
    metrics = trials.attrs["metrics"]
    heading = "Trade-off: " + " against ".join(names.measure(name) for name in metrics[1::-1])
    rows = searched(trials).dropna(subset=metrics[:2])
    if len(metrics) < 2 or rows.empty:
        return empty(heading, "No trial has reported two metrics yet.", "A sweep with two metrics makes this figure.")
    first, second = metrics[:2]
    signs = [1 if mode_of(trials, name) == "min" else -1 for name in (first, second)]
    best = pareto_front(signs[0] * rows[first], signs[1] * rows[second])
    front = rows[best].sort_values(first)
    figure = go.Figure()
    figure.add_scatter(
        x=front[first], y=front[second], mode="lines+markers", name="Pareto front: none is better in both",
        line={"color": "#56B4E9", "width": 6, "shape": "hv" if signs[0] == signs[1] else "vh"},
        marker={"size": 18}, opacity=0.5, hoverinfo="skip",
    )  # fmt: skip
    for status, part in rows.groupby("status", sort=True):
        figure.add_scatter(
            x=part[first], y=part[second], mode="markers", name=names.STATUS_WORDS.get(status, status),
            marker={"size": 9, "color": names.STATUS_COLOURS.get(status, FAINT)},
            hovertext=[_trial_words(trials, index) for index in part.index], hoverinfo="text",
        )  # fmt: skip
    styled(figure, heading, x=names.measure(first))
    return figure


def confirmation_figure(trials: pd.DataFrame, metric: str) -> go.Figure:
    """The best settings and the current ones on other seeds: each seed, and the mean with its standard error."""
    heading = f"{names.measure(metric)}, on other seeds: mean ± standard error"
    rows = trials[(trials["kind"] == "confirmation") & trials[metric].notna()]
    if rows.empty:
        return empty(
            heading, "The best settings are not confirmed on other seeds yet.", "`ayf sweep NAME` ends with that."
        )
    words = {"best": "best of the sweep", "current": "params.yaml as it was"}
    figure = go.Figure()
    for settings, part in rows.groupby("confirms", sort=True):
        name = words.get(str(settings), str(settings))
        colour = "#009E73" if settings == "best" else "#767676"
        mean, error = part[metric].mean(), part[metric].sem()
        seeds = zip(part["seed"], part[metric], strict=True)
        said = f"{mean:.4g}" + ("" if pd.isna(error) else f" ± {error:.2g} ({len(part)} seeds)")
        figure.add_scatter(
            x=[name] * len(part), y=part[metric], mode="markers", marker={"color": colour, "size": 8, "opacity": 0.5},
            hovertext=[f"{name}, seed {seed}: {value:.4g}" for seed, value in seeds],
            hoverinfo="text", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=[name], y=[mean], error_y={"array": [0 if pd.isna(error) else error], "thickness": 2, "width": 12},
            mode="markers", marker={"color": colour, "size": 15, "symbol": "diamond"}, name=f"{name}: {said}",
            hovertext=[f"{name}: {said}"], hoverinfo="text",
        )  # fmt: skip
    styled(figure, heading, height=400)
    figure.update_xaxes(range=[-0.6, rows["confirms"].nunique() - 0.4])
    return figure


def trials_table(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials as a person reads them, the best first."""
    metrics = trials.attrs["metrics"]
    rows = searched(trials)
    if metrics:
        rows = rows.sort_values(metrics[0], ascending=mode_of(trials, metrics[0]) == "min", na_position="last")
    table = pd.DataFrame({"Trial": [f"{number:g}" for number in rows["trial"]]})
    for name in metrics:
        table[names.measure(name)] = ["" if pd.isna(value) else f"{value:.4g}" for value in rows[name]]
    for name in trials.attrs["settings"]:
        table[name] = [short(value) for value in rows[name]]
    table["Training steps"] = ["" if pd.isna(count) else f"{count:,.0f}" for count in rows["trained_steps"]]
    table["Time"] = rows["seconds"].map(duration).tolist()
    table["Status"] = [names.STATUS_WORDS.get(status, status) for status in rows["status"]]
    return table


def short(value: object) -> str:
    """A setting's value with four digits at most."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trial_words(trials: pd.DataFrame, index: Hashable) -> str:
    row = trials.loc[index]
    lines = [f"trial {row['trial']:g}: {names.STATUS_WORDS.get(row['status'], row['status'])}"]
    lines += [f"{names.measure(name)}: {row[name]:.4g}" for name in trials.attrs["metrics"] if not pd.isna(row[name])]
    lines += [f"{names.setting(name)}: {short(row[name])}" for name in trials.attrs["settings"]]
    return "<br>".join(lines)
