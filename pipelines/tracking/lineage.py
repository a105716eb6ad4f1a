"""What led to what: the run that made an output, the settings of a run, the code's commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from ayf_core.errors import AyfError
from ayf_core.files import first_line, parse_json
from pipelines.git import git
from pipelines.settings.yaml_file import parse_yaml
from pipelines.tracking.store import experiment, tracking_uri
from pipelines.tracking.tags import ACCEPTED_TAG, BEST_TAG, FIXED_TAG, KIND_TAG, OUTPUT_TAG, POINT_TAG

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

SHORTEST_ID = 6


def find_run_by_output(path: str, fingerprint: str, uri: str) -> str | None:
    """The id of the newest run that published `path` with these contents."""
    client = MlflowClient(uri)
    wanted = f"tags.`{OUTPUT_TAG}{path}` = '{fingerprint}'"
    found = client.search_runs([experiment(client)], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0].info.run_id if found else None


def note_accepted(run_id: str, words: str, uri: str) -> None:
    """Note with a run that a later change of code was said to be harmless."""
    client = MlflowClient(uri)
    tags = client.get_run(run_id).data.tags
    client.set_tag(run_id, ACCEPTED_TAG, "\n".join(filter(None, [tags.get(ACCEPTED_TAG), words])))
    client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{tags.get(MLFLOW_RUN_NOTE, '')}\nCode: {words}.\n".lstrip())


def settings_of_run(name: str, root: Path, runtime: RuntimeConfig | None = None) -> tuple[str, dict[str, Any]]:
    """What a person calls a run, and its settings by dotted key.

    Args:
        name: of a sweep (its best trial is taken), or the id of a run, or the id's start.

    Raises:
        AyfError: there is no such run, several, or a sweep that has not ended.
    """
    client = MlflowClient(tracking_uri(root, runtime))
    run = _named_run(client, name)
    if run.data.tags.get(KIND_TAG) == "sweep":
        best = run.data.tags.get(BEST_TAG)
        if best is None:
            raise AyfError(f"{run.info.run_name} has no best trial: let it end (--resume), or name one of its trials")
        run = client.get_run(best)
    try:
        return str(run.info.run_name), _settings(run)
    except (ValueError, TypeError) as error:
        raise AyfError(
            f"the run {name} has settings that cannot be read ({first_line(error)}): name another"
        ) from error


def _settings(run: Run) -> dict[str, Any]:
    if POINT_TAG in run.data.tags:
        fixed = parse_json(run.data.tags.get(FIXED_TAG, "{}"))
        return {**fixed, **parse_json(run.data.tags[POINT_TAG])}
    return {key: parse_yaml(value) for key, value in run.data.params.items()}


def _named_run(client: MlflowClient, name: str) -> Run:
    where, newest = [experiment(client)], ["attributes.start_time DESC"]
    quoted = name.replace("'", "")
    wanted = f"tags.`ayf.sweep` = '{quoted}' and tags.`{KIND_TAG}` = 'sweep'"
    found = list(client.search_runs(where, wanted, max_results=1, order_by=newest))
    if not found and len(quoted) >= SHORTEST_ID:
        found = [run for run in client.search_runs(where, max_results=50_000) if run.info.run_id.startswith(quoted)]
    if len(found) != 1:
        what = f"{len(found)} runs begin with" if found else "no sweep and no run is called"
        raise AyfError(f"{what} {name}: name a sweep, or copy a run's id from MLflow (at least {SHORTEST_ID} digits)")
    return found[0]


def last_seconds(stages: Sequence[str], uri: str) -> dict[str, float]:
    """Seconds that the newest finished run of each stage took, of those that have one."""
    client = MlflowClient(uri)
    seconds = {}
    for stage in stages:
        wanted = f"tags.`dvc.stage` = '{stage}' and tags.`{KIND_TAG}` = 'stage' and attributes.status = 'FINISHED'"
        order = ["attributes.start_time DESC"]
        for run in client.search_runs([experiment(client)], wanted, max_results=1, order_by=order):
            seconds[stage] = (run.info.end_time - run.info.start_time) / 1000
    return seconds


def git_tags(root: Path) -> dict[str, str]:
    """The code's commit and whether tracked files differ from it (dvc.lock aside: repro writes it)."""
    commit = git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    dirty = {} if changed is None else {"ayf.git_dirty": str(bool(changed)).lower()}
    return {"mlflow.source.git.commit": commit, **dirty}
