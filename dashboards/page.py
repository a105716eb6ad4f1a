"""One self-contained HTML page: plotly.js and all data inside it, no request to any network.

page.write(path, page.store_page(uri))      the whole dashboard of a store
page.sweep_page(trials, curves)             one sweep, as text
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dashboards import frames, names, views
from dashboards.figures.style import day
from dashboards.views import Panel, View

_SWEEPS_SHOWN = 6


def store_page(uri: str, experiment: str = frames.EXPERIMENT) -> str:
    """The dashboard of a store: each model's newest evaluation, its training and lineage, the newest sweeps.

    Raises:
        StoreError: the store cannot be read.
    """
    table = frames.runs(uri, experiment)
    shown = frames.newest_evaluations(table)
    metrics = frames.metrics_by_nfe(uri, shown)
    made = dict(zip(table["run_id"], table["model"], strict=True))
    parts = [
        views.quality(metrics),
        views.sampling(metrics),
        views.samples(frames.sample_pictures(uri, shown)),
        views.training({label: frames.training_curves(uri, run_id) for label, run_id in trainings(table).items()}),
        *(_sweep_view(uri, run_id, experiment) for run_id in newest_sweeps(table)),
        views.lineage({names.title(made[run_id]): frames.lineage(uri, run_id) for run_id in shown}),
    ]
    newest = f"The newest run began on {day(table['start'].max())} (UTC). " if len(table) else ""
    again = "`ayf dashboard --export FILE` makes this page anew, `ayf dashboard` serves it over the store."
    return html_page("Align Your Flow: dashboard", newest + again, parts, views.runs_shown(metrics))


def sweep_page(trials: pd.DataFrame, curves: pd.DataFrame | None = None) -> str:
    """One sweep as a page.

    Args:
        trials: as `frames.trials` reads them.
        curves: as `frames.trial_curves` reads them; None leaves learning curves out.
    """
    view = views.sweep(trials, curves)
    latest = trials[["start", "end"]].max().max() if len(trials) else pd.NaT
    return html_page(view.title, f"The newest event is of {day(latest)} (UTC).", [view])


def write(path: Path, text: str) -> None:
    """Writes beside and renames: a reader never meets half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def trainings(table: pd.DataFrame) -> dict[str, str]:
    """Of `frames.runs`: the newest run of each stage that trains, by its name in words."""
    if "metrics.loss" not in table:
        return {}
    trained = table[(table["kind"] == "stage") & table["metrics.loss"].notna()].drop_duplicates("stage")
    return dict(zip(trained["name"], trained["run_id"], strict=True))


def newest_sweeps(table: pd.DataFrame) -> list[str]:
    """Of `frames.runs`: the id of the newest run of each sweep, newest first. Searches of two models are two."""
    return table[table["kind"] == "sweep"].drop_duplicates(["sweep", "name"])["run_id"].tolist()[:_SWEEPS_SHOWN]


def _sweep_view(uri: str, run_id: str, experiment: str) -> View:
    trials = frames.trials(uri, run_id, experiment)
    return views.sweep(trials, frames.trial_curves(uri, trials))


# -------------------------------------------------------------------------------------------------------- HTML


def html_page(title: str, text: str, parts: Iterable[View], shown: pd.DataFrame | None = None) -> str:
    """A whole page: a heading, a contents line, the views, and which runs they are of."""
    ids = (f"figure-{number}" for number in count())
    parts = list(parts)
    links = " · ".join(f'<a href="#part-{k}">{html.escape(part.title)}</a>' for k, part in enumerate(parts))
    body = "\n".join(_view(part, f"part-{k}", ids) for k, part in enumerate(parts))
    runs = "" if shown is None or shown.empty else f"<h2>Runs shown</h2>{_table(shown)}"
    heading = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script></head>\n"
        f"<body><main><h1>{heading}</h1><p>{_prose(text)}</p>\n"
        + (f"<nav>{links}</nav>\n" if len(parts) > 1 else "")
        + f"{body}\n{runs}</main>\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _view(view: View, anchor: str, ids: Iterable[str]) -> str:
    panels = "\n".join(_panel(panel, place > 0, ids) for place, panel in enumerate(view.panels))
    options = "".join(f"<option>{html.escape(panel.label)}</option>" for panel in view.panels)
    choice = f"<label>{html.escape(view.choice)} <select>{options}</select></label>" if len(view.panels) > 1 else ""
    heading = f"<h2>{html.escape(view.title)}</h2><p>{_prose(view.text)}</p>"
    return f'<section id="{anchor}">{heading}{choice}\n{panels}</section>'


def _panel(panel: Panel, hidden: bool, ids: Iterable[str]) -> str:
    drawn = "\n".join(_figure(figure, next(iter(ids))) for figure in panel.draw())
    table = "" if panel.table is None or panel.table.empty else _table(panel.table)
    return f'<div class="panel"{" hidden" if hidden else ""}><div class="figures">{drawn}</div>{table}</div>'


def _figure(figure: go.Figure, name: str) -> str:
    # A "<" in the data must not end the script element it lies in.
    data = str(figure.to_json()).replace("<", "\\u003c")
    height = figure.layout.height
    return (
        f'<div class="figure" id="{name}" style="height:{height}px"></div>'
        f'<script type="application/json" id="{name}-data">{data}</script>'
    )


def _table(table: pd.DataFrame) -> str:
    return f'<div class="wide">{table.to_html(index=False, border=0, justify="left")}</div>'


def _prose(text: str) -> str:
    """Text with `commands` set as such."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 }
main { max-width: 84rem; margin: 0 auto; padding: 1rem; box-sizing: border-box }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.2rem; margin: 2rem 0 .25rem } p { margin: .25rem 0 .75rem }
p, nav { overflow-wrap: anywhere }
label { display: block; margin: .5rem 0 } select { font: inherit; max-width: 100%; padding: .2rem }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem }
.figure { min-width: 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .875rem }
td, th { padding: .2rem .9rem .2rem 0; text-align: left; white-space: nowrap }
tr:nth-child(even) td { background: #f5f5f5 }
code { background: #f2f2f2; padding: 0 .2rem }
.layer-below image, .imagelayer image, .js-plotly-plot image { image-rendering: pixelated }
"""
_SCRIPT = """
const settings = {responsive: true, displaylogo: false, displayModeBar: false}
function draw(panel) {
  for (const place of panel.querySelectorAll('.figure:not([data-drawn])')) {
    const figure = JSON.parse(document.getElementById(place.id + '-data').textContent)
    // A finger that scrolls the page should not zoom a figure.
    if (matchMedia('(pointer: coarse)').matches) figure.layout.dragmode = false
    Plotly.newPlot(place, figure.data, figure.layout, settings)
    place.dataset.drawn = 'yes'
  }
}
for (const section of document.querySelectorAll('section')) {
  const panels = [...section.querySelectorAll('.panel')]
  const choice = section.querySelector('select')
  if (panels.length) draw(panels[0])
  if (choice) choice.addEventListener('change', () => {
    panels.forEach((panel, place) => { panel.hidden = place !== choice.selectedIndex })
    draw(panels[choice.selectedIndex])
  })
}
document.body.dataset.ready = 'yes'
"""
