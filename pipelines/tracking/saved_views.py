"""Views of the runs table that MLflow's pages offer under "Views": columns, order and filter, ready to open by a link.

MLflow (3.15 and newer) keeps a saved view as a tag of the experiment, `mlflow.sharedViewState.<key>`: JSON with a name,
times and the page's state as text. Keys with `ayf-` are ours and written anew; a person's own views stay as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ayf_core.files import parse_json
from pipelines.tracking.tags import EXPERIMENT, KIND_TAG

VIEW_TAG = "mlflow.sharedViewState."
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")  # pages for training, not for chats
ALL_RUNS, EVALUATIONS, LATEST_SWEEP = "ayf-all-runs", "ayf-evaluations", "ayf-latest-sweep"
_NAME, _CREATED = "attributes.`Run Name`", "attributes.`Created`"
_CALLS_OF_ALL_RUNS = 4  # kind and model have room beside them on a common screen
_DISTANCES = ("fd", "jsd")
_CALLS_SHOWN = 6


@dataclass(frozen=True)
class Charts:
    """Samples of the runs side by side at a number of network calls, and bars of metrics below."""

    calls: int
    bars: tuple[str, ...]

    def state(self) -> dict[str, Any]:
        """The cards and sections of the page's charts."""
        samples = {"type": "IMAGE", "imageKeys": ["samples"], "step": self.calls, "showRunParams": False}
        bars = [{"type": "BAR", "metricKey": name, "runsCountToCompare": 10} for name in self.bars]
        cards = [("ayf-samples", samples), *(("ayf-distances", bar) for bar in bars)]
        return {
            "compareRunCharts": [
                {"uuid": f"ayf-{place}", "metricSectionId": section, "deleted": False, "isGenerated": True, **card}
                for place, (section, card) in enumerate(cards)
            ],
            "compareRunSections": [
                _section("ayf-samples", "Samples, by network calls", columns=1, height=620),
                _section("ayf-distances", self.bars[0].split("/")[0], columns=3, height=360),
            ],
            "isAccordionReordered": True,
        }


def _section(key: str, name: str, columns: int, height: int) -> dict[str, Any]:
    shown = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": key, "name": name, "columns": columns, "cardHeight": height, **shown}


@dataclass(frozen=True)
class View:
    """A view of the runs table. Columns and `order_by` are MLflow's canonical keys, such as "metrics.`fd/nfe_2`".

    Attributes:
        charts: what the page's charts begin with; MLflow adds one for every other metric below.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    order_by: str = "attributes.start_time"
    ascending: bool = False
    search: str = ""
    charts: Charts | None = None

    def state(self) -> dict[str, Any]:
        """What the page restores; a name is wide enough to be read whole."""
        return {
            "selectedColumns": list(self.columns),
            "columnOrder": [_NAME, _CREATED, *self.columns],
            "columnWidths": {_NAME: 300},
            "searchFilter": self.search,
            "orderByKey": self.order_by,
            "orderByAsc": self.ascending,
            **(self.charts.state() if self.charts else {}),
        }


def ready_views(client: MlflowClient, experiment: str) -> list[View]:
    """The views that the runs call for: all runs; evaluations and the newest sweep where there are any."""
    evaluations = _runs(client, experiment, "tags.`dvc.stage` LIKE 'evaluate%'")
    distances = [column("metrics", name) for name in distance_metrics(evaluations)]
    views = [
        View(
            ALL_RUNS,
            "All runs",
            (*distances[:_CALLS_OF_ALL_RUNS], column("tags", KIND_TAG), column("tags", "ayf.model")),
        )
    ]
    if distances:
        two = next((name for name in distances if name.endswith("/nfe_2`")), distances[0])
        columns = (*distances, column("metrics", "recall/nfe_2"), column("metrics", "seconds_per_image/nfe_2"))
        where = f"tags.`dvc.stage` LIKE 'evaluate%' and tags.`{KIND_TAG}` = 'stage'"
        charts = Charts(calls_of_most(evaluations), tuple(distance_metrics(evaluations)))
        views.append(View(EVALUATIONS, "Evaluations, best first", columns, two, True, where, charts))
    sweeps = _runs(client, experiment, f"tags.`{KIND_TAG}` = 'sweep'", limit=1)
    if sweeps:
        children = _runs(client, experiment, f"tags.`mlflow.parentRunId` = '{sweeps[0].info.run_id}'")
        views.append(sweep_view(sweeps[0], children))
    return views


def sweep_view(sweep: Run, children: Sequence[Run]) -> View:
    """A sweep's trials, best first: its metrics, how far each trial came, the settings that differ among trials."""
    metrics = [name.strip() for name in sweep.data.tags.get("ayf.metric", "").split(",") if name.strip()]
    settings: dict[str, set[str]] = {}
    for child in children:
        for key, value in child.data.params.items():
            settings.setdefault(key, set()).add(value)
    differing = [key for key, values in settings.items() if len(values) > 1]
    columns = [column("metrics", name) for name in metrics]
    columns += [column("metrics", "trained_steps"), column("tags", "ayf.trial.status")]
    columns += [column("params", key) for key in differing]
    return View(
        LATEST_SWEEP,
        f"Sweep {sweep.data.tags.get('ayf.sweep', '')}, best first",
        tuple(columns),
        columns[0],
        sweep.data.tags.get("ayf.mode", "min").startswith("min"),
        f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'",
    )


def distance_metrics(evaluations: Sequence[Run]) -> list[str]:
    """Names such as `fd/nfe_2` that evaluations have, the fewest network calls first."""
    names = {name for run in evaluations for name in _distances(run)}
    return sorted(names, key=lambda name: (name.split("/")[0], int(name.rpartition("_")[2])))[:_CALLS_SHOWN]


def calls_of_most(evaluations: Sequence[Run]) -> int:
    """The number of network calls at which most evaluations were measured; the smaller of two."""
    calls = [int(name.rpartition("_")[2]) for run in evaluations for name in _distances(run)]
    return min(calls, key=lambda n: (-calls.count(n), n))


def column(kind: str, name: str) -> str:
    """MLflow's key of a column: "metrics.`fd/nfe_2`"."""
    return f"{kind}.`{name}`"


def save(client: MlflowClient, experiment: str, views: Sequence[View]) -> None:
    """Write the views into the experiment's tags; one that is there already with the same content is left alone."""
    tags = client.get_experiment(experiment).tags
    if EXPERIMENT_KIND[0] not in tags:
        client.set_experiment_tag(experiment, *EXPERIMENT_KIND)
    for view in views:
        state = json.dumps(view.state())
        known = _envelope(tags.get(VIEW_TAG + view.key))
        if (known.get("name"), known.get("state")) == (view.title, state):
            continue
        now = int(time.time() * 1000)
        envelope = {"name": view.title, "createdAt": known.get("createdAt", now), "updatedAt": now, "state": state}
        client.set_experiment_tag(experiment, VIEW_TAG + view.key, json.dumps(envelope))


def links(store: str, address: str) -> list[tuple[str, str]]:
    """(words, URL) of the pages worth opening, their views saved in the store; empty if the store cannot keep them."""
    client = MlflowClient(store)
    try:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            return []
        experiment = found.experiment_id
        views = ready_views(client, experiment)
        save(client, experiment, views)
        compared = newest_of_each_model(_runs(client, experiment, "tags.`dvc.stage` LIKE 'evaluate@%'"))
    except MlflowException:  # the pages are there without
        return []
    pages = [(view.title, view_address(address, experiment, view.key)) for view in views]
    if any(view.key == EVALUATIONS for view in views):
        pages.append(
            (
                "Charts and samples side by side",
                view_address(address, experiment, EVALUATIONS) + "&compareRunsMode=CHART",
            )
        )
    if len(compared) > 1:
        pages.append(("Evaluations compared", compare_address(address, experiment, compared)))
    return pages


def newest_of_each_model(evaluations: Sequence[Run]) -> list[str]:
    """Ids of the newest finished evaluation of each model; runs come newest first."""
    newest: dict[str, str] = {}
    for run in evaluations:
        if run.info.status == "FINISHED" and run.data.tags.get(KIND_TAG, "stage") == "stage":
            newest.setdefault(run.data.tags["dvc.stage"], run.info.run_id)
    return list(newest.values())


def view_address(address: str, experiment: str, key: str) -> str:
    """The runs table with a saved view."""
    return f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={key}"


def compare_address(address: str, experiment: str, runs: Sequence[str]) -> str:
    """MLflow's comparison of runs."""
    query = f"runs={quote(json.dumps(list(runs)))}&experiments={quote(json.dumps([experiment]))}"
    return f"{address}/#/compare-runs?{query}&workflowType=machine_learning"


def _runs(client: MlflowClient, experiment: str, where: str, limit: int = 1000) -> list[Run]:
    """Newest first."""
    return list(client.search_runs([experiment], where, max_results=limit, order_by=["attributes.start_time DESC"]))


def _distances(run: Run) -> list[str]:
    prefixes = tuple(f"{distance}/nfe_" for distance in _DISTANCES)
    return [name for name in run.data.metrics if name.startswith(prefixes)]


def _envelope(text: str | None) -> dict[str, Any]:
    try:
        found = parse_json(text or "{}")
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}
