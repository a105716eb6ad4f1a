"""The MLflow runs of a sweep: one above all, a child for each trial and for each confirmation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pipelines.settings.places import PARAMS_FILE
from pipelines.tracking.lineage import git_tags
from pipelines.tracking.notes import run_name
from pipelines.tracking.runs import StageRun, open_run
from pipelines.tracking.tags import FIXED_TAG, KEY_TAG, POINT_TAG
from sweeps.answer import Answer
from sweeps.definition import Sweep
from sweeps.ledger import Trial
from sweeps.place import Place


def open_parent(place: Place) -> StageRun:
    sweep = place.sweep
    run = open_run(
        " + ".join(stage.name for stage in sweep.chain),
        run_name=f"sweep {sweep.name} {int(place.folder.name)}",
        root=place.root,
        scratch=place.folder,
        params={"trials": sweep.trials, "search": sweep.search.search, "scheduler": sweep.search.scheduler},
        tags={
            KEY_TAG: place.key,
            "ayf.sweep": sweep.name,
            "ayf.metric": ",".join(metric.name for metric in sweep.metrics),
            "ayf.mode": ",".join(metric.mode for metric in sweep.metrics),
        },
        runtime=place.runtime,
        kind="sweep",
    )
    for part, name in ((f"{sweep.name}.yaml", "sweep.yaml"), (PARAMS_FILE, "params.yaml")):
        run.log_text(name, (place.folder / part).read_text())
    return run


def trial_opener(place: Place, parent: StageRun) -> Callable[[Trial], StageRun]:
    code = git_tags(place.root)

    def opened(trial: Trial) -> StageRun:
        name = run_name(f"trial {trial.number}", _differing(place.sweep, trial))
        tags = {"ayf.trial": str(trial.number), "ayf.trial.status": "running"}
        return _open_child(place, parent, trial, name, "trial", {**code, **tags})

    return opened


def confirmation_opener(place: Place, parent: StageRun, answer: Answer) -> Callable[[Trial], StageRun]:
    code = git_tags(place.root)

    def opened(trial: Trial) -> StageRun:
        which = "current" if answer.is_present(place.sweep, trial.point) else "best"
        confirms = {"ayf.trial": str(answer.best.number)} if which == "best" and answer.best else {}
        name = f"confirm {which} settings, seed {trial.point['seed']}"
        return _open_child(place, parent, trial, name, "confirmation", {**code, "ayf.settings": which, **confirms})

    return opened


def _open_child(place: Place, parent: StageRun, trial: Trial, name: str, kind: str, tags: dict[str, str]) -> StageRun:
    return open_run(
        place.sweep.chain[-1].name,
        run_name=name,
        root=place.root,
        scratch=trial.folder,
        params=trial.point,
        tags={
            KEY_TAG: f"{place.key}/{kind}/{trial.number}",
            "ayf.sweep": place.sweep.name,
            POINT_TAG: json.dumps(trial.point),
            FIXED_TAG: json.dumps(place.sweep.fixed),
            **tags,
        },
        runtime=place.runtime,
        kind=kind,
        parent=parent.id,
        code={},
    )


def _differing(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    present = sweep.present
    return {key: value for key, value in trial.point.items() if present.get(key, object()) != value}
