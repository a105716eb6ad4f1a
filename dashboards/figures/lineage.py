"""Where a result came from: the runs it stands on, back to the data, with their settings and commits."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboards.figures.style import GRID, INK, day, empty, styled

_SETTINGS_SHOWN = 16
_ROW = 92
_COLOURS = {"shown": "#0072B2", "run": "#56B4E9", "data": "#E69F00"}


@dataclass
class _Node:
    words: str
    kind: str
    hover: str
    inputs: set[str] = field(default_factory=set)
    level: int = 0


def lineage_figure(lineage: pd.DataFrame) -> go.Figure:
    """A layered drawing, data on top and the shown run at the bottom.

    An arrow is something that one run made and another read. Arrows that others imply are left out; the hover text
    of a run lists all that it read, its settings and commit.
    """
    if lineage.empty:
        return empty("Where it came from", "No run to trace.", "`dvc repro` records runs with their lineage.")
    nodes = _nodes(lineage)
    places = _places(nodes)
    figure = go.Figure()
    for name in nodes:
        for upstream in _direct(name, nodes):
            _add_arrow(figure, places[upstream], places[name])
    for kind, colour in _COLOURS.items():
        chosen = [name for name, node in nodes.items() if node.kind == kind]
        figure.add_scatter(
            x=[places[name][0] for name in chosen], y=[places[name][1] for name in chosen], mode="markers",
            marker={"symbol": "square", "size": 38, "color": colour, "opacity": 0.25}, showlegend=False,
            hovertext=[nodes[name].hover for name in chosen], hoverinfo="text",
        )  # fmt: skip
        for name in chosen:
            x, y = places[name]
            figure.add_annotation(
                x=x, y=y, text=nodes[name].words, showarrow=False, bgcolor="white", bordercolor=colour, borderwidth=2,
                borderpad=4, font={"size": 11, "color": INK}, captureevents=False,
            )  # fmt: skip
    levels = 1 + max(node.level for node in nodes.values())
    first = lineage.iloc[0]
    styled(figure, f"Where “{first['name']}” came from", height=_ROW * levels + 60)
    figure.update_layout(margin={"l": 4, "r": 4, "t": 44, "b": 4})
    figure.update_xaxes(visible=False, range=[0, 1], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.6, levels - 0.4], fixedrange=True)
    return figure


def _nodes(lineage: pd.DataFrame) -> dict[str, _Node]:
    """Runs and data sets by name, each with what it read and its level: the longest way down to the shown run."""
    nodes: dict[str, _Node] = {}
    known = set(lineage["run_id"])
    for place, row in enumerate(lineage.to_dict("records")):
        inputs = {run_id for run_id in row["inputs"].values() if run_id in known}
        nodes[row["run_id"]] = _Node(_label(row), "run" if place else "shown", _hover(row, lineage), inputs)
    for row in lineage.to_dict("records"):
        for name, words, hover in _data(row):
            nodes.setdefault(name, _Node(words, "data", hover))
            nodes[row["run_id"]].inputs.add(name)
    for name in list(nodes):  # each run comes after all that used it
        for upstream in nodes[name].inputs:
            nodes[upstream].level = max(nodes[upstream].level, nodes[name].level + 1)
    return nodes


def _data(row: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Data sets that no run upstream made: those noted with the run, or the one that its settings name."""
    noted = [(name, digest) for name, digest in row["data"].items() if name not in row["inputs"]]
    for name, digest in noted:
        yield f"data {name} {digest}", f"{name}<br>{digest[:8]}", f"data set {name}<br>digest {digest}"
    source = row["settings"].get("data.name")
    if source and not noted and not row["inputs"]:
        yield f"data {source}", f"data<br>{source}", f"data set {source}, as the settings name it"


def _label(row: Mapping[str, Any]) -> str:
    words = textwrap.wrap(str(row["name"]), 14) or ["run"]
    return "<br>".join([*words, f"<span style='font-size:10px'>{_commit(row)[:7] or row['run_id'][:7]}</span>"])


def _commit(row: Mapping[str, Any]) -> str:
    return row["commit"] if isinstance(row["commit"], str) else ""


def _hover(row: Mapping[str, Any], lineage: pd.DataFrame) -> str:
    names = dict(zip(lineage["run_id"], lineage["name"], strict=True))
    changed = ", with changes not committed" if row["dirty"] else ""
    lines = [f"<b>{row['name']}</b>, {day(row['start'])} UTC", f"commit {_commit(row)[:12] or 'unknown'}{changed}"]
    lines += [f"run {row['run_id']}"]
    lines += [f"read {path}, made by {names.get(run_id, 'a run not kept')}" for path, run_id in row["inputs"].items()]
    lines += [f"read {name}, digest {digest[:12]}" for name, digest in row["data"].items()]
    settings = [f"{key} = {value}" for key, value in row["settings"].items()]
    lines += settings[:_SETTINGS_SHOWN]
    if len(settings) > _SETTINGS_SHOWN:
        lines.append(f"and {len(settings) - _SETTINGS_SHOWN} more settings, in MLflow")
    return "<br>".join(lines)


def _places(nodes: Mapping[str, _Node]) -> dict[str, tuple[float, float]]:
    levels: dict[int, list[str]] = {}
    for name, node in nodes.items():
        levels.setdefault(node.level, []).append(name)
    return {
        name: ((place + 0.5) / len(members), float(level))
        for level, members in levels.items()
        for place, name in enumerate(members)
    }


def _direct(name: str, nodes: Mapping[str, _Node]) -> set[str]:
    """What a run read and no other thing it read stands on."""
    implied: set[str] = set()
    for upstream in nodes[name].inputs:
        implied |= _ancestors(upstream, nodes)
    return nodes[name].inputs - implied


def _ancestors(name: str, nodes: Mapping[str, _Node]) -> set[str]:
    found: set[str] = set()
    waiting = list(nodes[name].inputs)
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += nodes[current].inputs
    return found


def _add_arrow(figure: go.Figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From what was read, above, to the reader; past other levels along the nearer edge."""
    (x0, y0), (x1, y1) = start, end
    edge = 0.95 if x0 + x1 >= 1 else 0.05
    bend = [(edge, y0 - 0.8), (edge, y1 + 0.8)] if y0 - y1 > 1 else []
    points = [start, *bend, end]
    figure.add_scatter(
        x=[x for x, _ in points], y=[y for _, y in points], mode="lines", hoverinfo="skip", showlegend=False,
        line={"color": GRID if bend else "#999999", "width": 2, "shape": "spline" if bend else "linear"},
    )  # fmt: skip
