"""The dashboard served over a live store: runs, versions and sweeps are chosen, histories read when they are shown.

Everything comes from this process: Dash's scripts and Plotly too. It writes nothing and runs until it is stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

import pandas as pd
from dash import Dash, Input, Output, State, dcc, html
from flask import request

from dashboards import frames, names, views
from dashboards.figures.style import day
from dashboards.page import STYLE, newest_sweeps
from dashboards.store import experiments, stamp
from dashboards.views import Panel, View

TABS = ["Quality", "Guidance", "Samples", "Training", "Sweeps", "Lineage", "Runs"]
_GRAPH: Any = {"displaylogo": False, "displayModeBar": False, "responsive": True}


class Reader:
    """What the store says, read once for each state of it: a second look costs nothing until a run writes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._state = ""
        self._known: dict[tuple, Any] = {}
        self._lock = Lock()

    def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(uri, *arguments)`, remembered while the store does not change."""
        with self._lock:
            state = stamp(self.uri)
            if state != self._state:
                self._state, self._known = state, {}
            key = (function.__name__, arguments)
            if key not in self._known:
                given = [list(part) if isinstance(part, tuple) else part for part in arguments]
                self._known[key] = function(self.uri, *given)
            return self._known[key]

    def runs(self, experiment: str) -> pd.DataFrame:
        return self.read(frames.runs, experiment)


def build(uri: str, experiment: str = frames.EXPERIMENT) -> Dash:
    """The application over a store. Raises StoreError where the store cannot be read."""
    reader = Reader(uri)
    reader.runs(experiment)  # a store that cannot be read is told now, not in the browser
    app = Dash("dashboards", title="Align Your Flow: dashboard", update_title="", index_string=_INDEX)
    app.layout = lambda: _layout(reader, experiment)

    @app.server.before_request
    def read_ahead() -> None:
        # While the browser still fetches scripts, the store is read for what it will ask next.
        if request.path == "/":
            Thread(target=_first_view_or_nothing, args=(reader, experiment), daemon=True).start()

    @app.callback(
        Output("choice", "options"),
        Output("choice", "value"),
        Output("choice", "multi"),
        Input("tab", "value"),
        Input("experiment", "value"),
        State("choice", "value"),
        prevent_initial_call=True,
    )
    def offer(tab: str, chosen: str, before: Any) -> tuple[list[dict], Any, bool]:
        options, value, several = choices(reader.runs(chosen), tab)
        known = {option["value"] for option in options}
        kept = [run_id for run_id in before if run_id in known] if isinstance(before, list) else []
        return options, (kept or value) if several else value, several

    @app.callback(
        Output("panel", "options"),
        Output("panel", "value"),
        Output("panel-row", "hidden"),
        Output("panel-label", "children"),
        Output("view", "children"),
        Input("choice", "value"),
        Input("panel", "value"),
        Input("tab", "value"),
        Input("experiment", "value"),
        prevent_initial_call=True,
    )
    def show(choice: Any, label: str | None, tab: str, chosen: str) -> tuple[list[str], str, bool, str, list]:
        selected = choice if isinstance(choice, list) else [choice] if choice else []
        return _shown(view_of(reader, chosen, tab, selected), label)

    return app


def serve(app: Dash, host: str, port: int) -> None:
    """Serve until Ctrl-C, quietly: one line a request helps nobody."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(host, port, app.server, threaded=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


# ------------------------------------------------------------------------------------- what can be chosen and seen


def choices(table: pd.DataFrame, tab: str) -> tuple[list[dict[str, str]], Any, bool]:
    """What a tab lets a person choose of `frames.runs`: options, the first choice, and whether several may be."""
    if tab in ("Quality", "Guidance", "Samples"):
        rows = table[table["model"].notna() & (table["status"] == "finished")]
        return _options(rows, [names.title(model) for model in rows["model"]]), frames.newest_evaluations(table), True
    if tab == "Training":
        rows = table[(table["kind"] == "stage") & _column(table, "metrics.loss").notna()]
        return _options(rows, rows["name"]), _first(rows), False
    if tab == "Sweeps":
        rows = table[table["kind"] == "sweep"]
        return _options(rows, rows["name"]), next(iter(newest_sweeps(table)), None), False
    if tab == "Lineage":
        rows = table[(table["kind"] == "stage") & table["stage"].notna()]
        best = rows[rows["model"].notna()]
        return _options(rows, rows["name"]), _first(best if len(best) else rows), False
    kinds = [str(kind) for kind in table["kind"].unique()]
    return [{"label": f"{kind} runs", "value": kind} for kind in kinds], kinds, True


def view_of(reader: Reader, experiment: str, tab: str, selected: Sequence[str]) -> View:
    """The view of a tab for the chosen runs."""
    table = reader.runs(experiment)
    if tab in ("Quality", "Guidance"):
        metrics = reader.read(frames.metrics_by_nfe, tuple(selected))
        return views.quality(metrics) if tab == "Quality" else views.sampling(metrics)
    if tab == "Samples":
        return views.samples(reader.read(frames.sample_pictures, tuple(selected)))
    if tab == "Training":
        return views.training({run_id: reader.read(frames.training_curves, run_id) for run_id in selected})
    if tab == "Lineage":
        return views.lineage({run_id: reader.read(frames.lineage, run_id) for run_id in selected})
    if tab == "Sweeps":
        return _sweep_view(reader, experiment, selected)
    rows = table[table["kind"].isin(selected)]
    text = f"{len(rows)} runs, the newest first. `ayf ui` shows each of them in full."
    return View("Runs", text, [Panel("", lambda: [], views.runs_table(rows))])


def _sweep_view(reader: Reader, experiment: str, selected: Sequence[str]) -> View:
    if not selected:
        return View("Sweeps", "There is no sweep here yet: `ayf sweep NAME` makes one.", [Panel("", lambda: [])])
    trials = reader.read(frames.trials, selected[0], experiment)
    return views.sweep(trials, frames.trial_curves(reader.uri, trials))


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    return table[name] if name in table else pd.Series(None, table.index, dtype=object)


def _first(rows: pd.DataFrame) -> str | None:
    return None if rows.empty else str(rows["run_id"].iloc[0])


def _options(rows: pd.DataFrame, labels: Sequence[str] | pd.Series) -> list[dict[str, str]]:
    return [
        {"label": f"{label}, {day(row.start)}, {str(row.commit or 'no commit')[:7]}", "value": row.run_id}
        for label, row in zip(labels, rows.itertuples(), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------- elements


def _first_view(reader: Reader, experiment: str) -> tuple[list[dict[str, str]], Any, View]:
    """What a page shows before anything is chosen: the first tab's options, their choice, and its view."""
    options, value, _ = choices(reader.runs(experiment), TABS[0])
    return options, value, view_of(reader, experiment, TABS[0], value)


def _first_view_or_nothing(reader: Reader, experiment: str) -> None:
    with suppress(frames.StoreError):  # the page itself will meet the error, and tell it
        _first_view(reader, experiment)


def _layout(reader: Reader, experiment: str) -> html.Main:
    """The page with its first view in it: no second question has to follow the first."""
    known = experiments(reader.uri)
    options, value, view = _first_view(reader, experiment)
    labels, label, hidden, words, contents = _shown(view, None)
    return html.Main(
        [
            html.H1("Align Your Flow"),
            html.Div(
                [html.Label("Experiment", htmlFor="experiment"), dcc.Dropdown(known, experiment, id="experiment")],
                hidden=len(known) < 2,
            ),
            dcc.Tabs([dcc.Tab(label=name, value=name) for name in TABS], TABS[0], id="tab", mobile_breakpoint=0),
            html.Label("Show", htmlFor="choice"),
            dcc.Dropdown(options, value, multi=True, id="choice", placeholder="nothing chosen"),
            html.Div(
                [
                    html.Label(words, htmlFor="panel", id="panel-label"),
                    dcc.Dropdown(labels, label, id="panel", clearable=False, searchable=False),
                ],
                id="panel-row",
                hidden=hidden,
            ),
            dcc.Loading(html.Div(contents, id="view"), delay_show=400),
        ]
    )


def _shown(view: View, label: str | None) -> tuple[list[str], str, bool, str, list]:
    """The panels' labels, the one shown, whether there is no choice, the choice's name, and the contents."""
    labels = [panel.label for panel in view.panels]
    panel = next((panel for panel in view.panels if panel.label == label), view.panels[0])
    return labels, panel.label, len(labels) < 2, view.choice, _contents(view, panel)


def _contents(view: View, panel: Panel) -> list:
    graphs = [
        dcc.Graph(figure=figure, config=_GRAPH, className="figure", style={"height": f"{figure.layout.height}px"})
        for figure in panel.draw()
    ]
    contents = [html.H2(view.title), html.P(_prose(view.text)), html.Div(graphs, className="figures")]
    if panel.table is not None and not panel.table.empty:
        contents.append(html.Div(_table(panel.table), className="wide"))
    return contents


def _prose(text: str) -> list:
    return [html.Code(part) if place % 2 else part for place, part in enumerate(text.split("`"))]


def _table(table: pd.DataFrame) -> html.Table:
    head = html.Thead(html.Tr([html.Th(name) for name in table]))
    rows = [html.Tr([html.Td(cell) for cell in row]) for row in table.astype(str).to_numpy().tolist()]
    return html.Table([head, html.Tbody(rows)])


# What draws is fetched and read while the first answer is computed, not after it.
_EARLY = '<script async src="/_dash-component-suites/plotly/package_data/plotly.min.js"></script>'
_INDEX = f"""<!DOCTYPE html>
<html lang="en"><head>{{%metas%}}<title>{{%title%}}</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">{{%css%}}
{_EARLY}<style>{STYLE}
.tab-container {{ flex-wrap: wrap }} .tab-container .tab {{ flex: 1 0 auto; width: auto; padding: .5rem .7rem }}
</style></head>
<body>{{%app_entry%}}<footer>{{%config%}}{{%scripts%}}{{%renderer%}}</footer></body></html>"""
