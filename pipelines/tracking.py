"""Opens MLflow runs: one a stage, continued when the stage is, with the lineage of what it read and made.

The only place of the project that opens MLflow runs. By default runs are kept in a SQLite store in the project;
its schema is created once, under a lock, because several processes that meet a fresh file crash in MLflow's
migration.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before MLflow is imported: no telemetry, and no minutes of retries where a server went away.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
import yaml
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from ayf_core.errors import AyfError
from pipelines.settings import literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.config import RuntimeConfig

EXPERIMENT = "align-your-flow"
OUTPUT_TAG = "ayf.output."
KEY_TAG = "ayf.key"
POINT_TAG = "ayf.point"
"""A trial's searched settings as JSON: exact, and the latest of a trial that changes them while it trains."""
FIXED_TAG = "ayf.fixed"
"""What every trial of a sweep has instead of params.yaml's values, as JSON."""
BEST_TAG = "ayf.best"
"""Of a sweep: the id of its best trial's run."""
KIND_TAG = "ayf.kind"
"""What a run is of: a `stage`, a `sweep`, one of its `trial`s, or a `confirmation` of its best."""

DETAILS = ("derivative_norm/", "discriminator/learning_rate")
"""Curves that MLflow's pages are better without: eight more charts a run, or another one's copy."""
COUNTS_OF_TROUBLE = ("masked_samples", "skipped_steps")
"""Zero in a healthy run: logged where they are not."""

_METRICS_A_BATCH = 1000  # MLflow's limits
_PARAMS_A_BATCH = 100
_PROBE_SECONDS = 3.0

for _noisy in ("alembic", "mlflow"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


# -------------------------------------------------------------------------------------------------- the store


def tracking_uri(root: Path, runtime: RuntimeConfig | None = None) -> str:
    """Where runs are kept: the runtime's `tracking_uri`, else MLFLOW_TRACKING_URI, else the project's store.

    The store is ready to be written when this returns: a server answers, a SQLite file has its schema.

    Raises:
        AyfError: the server does not answer, or the address is a plain folder.
    """
    configured = runtime.tracking_uri if runtime else None
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return ensure_store(root)
    source = "tracking_uri in conf/runtime" if configured else "MLFLOW_TRACKING_URI"
    if uri.startswith(("http://", "https://")):
        _probe(uri, source)
        return uri
    if uri.startswith("sqlite:///"):
        database = (root / uri.removeprefix("sqlite:///")).absolute()
        return _ready_sqlite(database, database.parent / "artifacts")
    if uri.startswith("file:") or "://" not in uri:
        raise AyfError(f"{source} = {uri}: MLflow keeps no runs in folders; use sqlite:///FILE.db or http://...")
    return uri


def ensure_store(root: Path) -> str:
    """Create the project's own store if need be; returns its absolute URI."""
    folder = root.absolute() / "mlruns"
    return _ready_sqlite(folder / "mlflow.db", folder / "artifacts")


def _ready_sqlite(database: Path, artifacts: Path) -> str:
    uri = f"sqlite:///{database}"
    database.parent.mkdir(parents=True, exist_ok=True)
    with _lock(database.with_name(database.name + ".lock")):
        client = MlflowClient(uri, registry_uri=uri)
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location=artifacts.as_uri())
            client.search_registered_models(max_results=1)  # the registry's tables too
    return uri


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _probe(uri: str, source: str) -> None:
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=_PROBE_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it answers: a proxy or another version may not know /health
    except (OSError, ValueError) as error:
        remedy = f"start it (ayf ui) or unset {source}"
        raise AyfError(f"the MLflow server {uri} does not answer; {remedy}") from error


# ------------------------------------------------------------------------------------------------------ a run


class StageRun:
    """An open MLflow run of a stage. Everything it writes may be written again after an interruption."""

    def __init__(self, client: MlflowClient, run: Run, uri: str, system_metrics: bool) -> None:
        self.id: str = run.info.run_id
        self.experiment: str = run.info.experiment_id
        self.uri = uri
        self._client = client
        self._artifacts: str = run.info.artifact_uri
        self._params_known = dict(run.data.params)
        self._continued = bool(run.data.metrics)
        self._last_step: dict[str, int] = {}
        self._monitor = _start_monitor(self.id, uri) if system_metrics else None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Note settings as params.yaml would write them, nested ones under dotted names.

        Those noted before are left as they are.
        """
        new = [Param(k, literal(v)) for k, v in _flat(params).items() if k not in self._params_known]
        for start in range(0, len(new), _PARAMS_A_BATCH):
            self._client.log_batch(self.id, params=new[start : start + _PARAMS_A_BATCH])
        self._params_known.update({param.key: param.value for param in new})

    def log_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records `{"step", "time", "metrics"}`; a step that a metric already has is skipped.

        Few curves say more than many: `DETAILS` and trouble that there was none of are left out.
        """
        metrics = []
        for record in records:
            for name, value in record["metrics"].items():
                if _says_nothing(name, value) or record["step"] <= self._last_logged(name):
                    continue
                self._last_step[name] = record["step"]
                metrics.append(Metric(name, float(value), int(record["time"] * 1000), record["step"]))
        try:
            for start in range(0, len(metrics), _METRICS_A_BATCH):
                self._client.log_batch(self.id, metrics=metrics[start : start + _METRICS_A_BATCH])
        except Exception:
            self._continued = True  # ask the store again what it has: the records will be offered once more
            self._last_step.clear()
            raise

    def log_values(self, values: Mapping[str, float], step: int = 0) -> None:
        """Add results that belong to no training step, such as `fd/nfe_4`."""
        import time

        self.log_metrics([{"step": step, "time": time.time(), "metrics": values}])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or a folder's content, with the run under `folder`."""
        if path.is_dir():
            self._client.log_artifacts(self.id, str(path), folder)
        else:
            self._client.log_artifact(self.id, str(path), folder)

    def log_image(self, name: str, image: Image) -> None:
        """Keep a picture with the run as `name` (for example `samples/nfe_4.png`)."""
        self._client.log_image(self.id, image, artifact_file=name)

    def log_step_image(self, key: str, step: int, image: Image) -> None:
        """Keep a picture under `key` at a step: MLflow lays those of several runs side by side, with a slider."""
        # MLflow puts time and a random id into the name: an image of an earlier attempt would be doubled.
        # (Its separator was % in older versions; the small copy is written last.)
        there = [Path(file.path).name.replace("%", "+") for file in self._client.list_artifacts(self.id, "images")]
        if not any(name.startswith(f"{key}+step+{step}+") and "compressed" in name for name in there):
            self._client.log_image(self.id, image, key=key, step=step)

    def log_text(self, name: str, text: str) -> None:
        """Keep a text with the run as `name`."""
        self._client.log_text(self.id, text, name)

    def log_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep a document with the run as `name` (for example `evaluation.json`)."""
        self._client.log_dict(self.id, dict(document), name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def set_note(self, markdown: str) -> None:
        """The description that MLflow shows above everything else of the run; replaces the one before."""
        self.set_tags({MLFLOW_RUN_NOTE: markdown})

    def read(self) -> tuple[dict[str, str], dict[str, float]]:
        """The run's tags, and each metric's last value, as they are in the store now."""
        data = self._client.get_run(self.id).data
        return dict(data.tags), dict(data.metrics)

    def log_dataset_input(self, name: str, digest: str, context: str = "training") -> None:
        """Note a data set the run read, by DVC's name and digest; MLflow's UI shows and compares it."""
        source = DvcSource(name, digest)
        # 36 characters is what MLflow allows, and the length of DVC's MD5 of a folder ("....dir").
        dataset = MetaDataset(source, name=name, digest=digest[:36])._to_mlflow_entity()  # type: ignore[abstract]
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self.id, [DatasetInput(dataset, tags)])

    def register_model(self, folder: Path, name: str, alias: str) -> str:
        """Put a model folder into the registry as `models:/<name>@<alias>`; returns the version.

        A run registers one version under a name: a repeated call finds it and sets the alias.
        """
        with suppress(MlflowException):
            self._client.create_registered_model(name)
        version = self._registered_version(name)
        if version is None:
            self._client.log_artifacts(self.id, str(folder), f"models/{name}")
            source = f"{self._artifacts}/models/{name}"
            version = self._client.create_model_version(name, source, run_id=self.id).version
        self._client.set_registered_model_alias(name, alias, version)
        return str(version)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._client.set_terminated(self.id, status)

    def _registered_version(self, name: str) -> str | None:
        # A filter on the run alone: not every back end can filter on both.
        found = self._client.search_model_versions(f"run_id = '{self.id}'")
        return next((version.version for version in found if version.name == name), None)

    def _last_logged(self, name: str) -> int:
        if name not in self._last_step:
            history = self._client.get_metric_history(self.id, name) if self._continued else []
            self._last_step[name] = max((point.step for point in history), default=-1)
        return self._last_step[name]


def open_run(
    stage: str,
    *,
    run_name: str,
    root: Path,
    scratch: Path,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    runtime: RuntimeConfig,
    kind: str = "stage",
    parent: str | None = None,
    code: Mapping[str, str] | None = None,
) -> StageRun:
    """Open the run of a stage or trial, or continue the one that `scratch/mlflow_run_id` names.

    Args:
        stage: the stage's name in dvc.yaml, such as `distill@emd`; of a sweep, the chain it searches.
        run_name: what a person sees in MLflow's list.
        root: the project; decides the store unless runtime or environment name one.
        scratch: the stage's scratch folder, which remembers the run.
        params: settings, noted once.
        tags: more tags; `ayf.key` finds the run of a stage killed before it could note the run's id.
        kind: stage, sweep, trial or confirmation.
        parent: the id of the run under which MLflow shows this one.
        code: `git_tags`, where the caller knows them already.
    """
    uri = tracking_uri(root, runtime)
    client = MlflowClient(uri)
    nested = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    known_by = {KIND_TAG: kind, "dvc.stage": stage, **(git_tags(root) if code is None else code), **nested, **tags}
    run = _known_run(client, scratch) or _unfinished_run(client, tags.get(KEY_TAG))
    continued = run is not None
    if run is None:
        # The key is there from the first moment: a kill before the id is noted does not double the run.
        run = client.create_run(_experiment(client), run_name=run_name, tags=dict(known_by))
    else:
        client.update_run(run.info.run_id, status="RUNNING", name=run_name)
    _remember(scratch, run.info.run_id)
    opened = StageRun(client, run, uri, runtime.system_metrics)
    if continued:
        opened.set_tags(known_by)
    opened.log_params(params)
    return opened


def find_run_by_output(path: str, fingerprint: str, uri: str) -> str | None:
    """The id of the newest run that published `path` with these contents."""
    client = MlflowClient(uri)
    wanted = f"tags.`{OUTPUT_TAG}{path}` = '{fingerprint}'"
    found = client.search_runs([_experiment(client)], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0].info.run_id if found else None


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
    if POINT_TAG in run.data.tags:
        fixed = json.loads(run.data.tags.get(FIXED_TAG, "{}"))
        return str(run.info.run_name), {**fixed, **json.loads(run.data.tags[POINT_TAG])}
    return str(run.info.run_name), {key: yaml.safe_load(value) for key, value in run.data.params.items()}


def _named_run(client: MlflowClient, name: str) -> Run:
    where, newest = [_experiment(client)], ["attributes.start_time DESC"]
    quoted = name.replace("'", "")
    wanted = f"tags.`ayf.sweep` = '{quoted}' and tags.`{KIND_TAG}` = 'sweep'"
    found = list(client.search_runs(where, wanted, max_results=1, order_by=newest))
    if not found and len(quoted) >= SHORTEST_ID:
        found = [run for run in client.search_runs(where, max_results=50_000) if run.info.run_id.startswith(quoted)]
    if len(found) != 1:
        what = f"{len(found)} runs begin with" if found else "no sweep and no run is called"
        raise AyfError(f"{what} {name}: name a sweep, or copy a run's id from MLflow (at least {SHORTEST_ID} digits)")
    return found[0]


SHORTEST_ID = 6


def last_seconds(stages: Sequence[str], uri: str) -> dict[str, float]:
    """Seconds that the newest finished run of each stage took, of those that have one."""
    client = MlflowClient(uri)
    seconds = {}
    for stage in stages:
        wanted = f"tags.`dvc.stage` = '{stage}' and tags.`{KIND_TAG}` = 'stage' and attributes.status = 'FINISHED'"
        order = ["attributes.start_time DESC"]
        for run in client.search_runs([_experiment(client)], wanted, max_results=1, order_by=order):
            seconds[stage] = (run.info.end_time - run.info.start_time) / 1000
    return seconds


def git_tags(root: Path) -> dict[str, str]:
    """The code's commit and whether tracked files differ from it (dvc.lock aside: repro writes it)."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    return {"mlflow.source.git.commit": commit, "ayf.git_dirty": str(bool(changed)).lower()}


def resolve_model(uri_or_path: str | Path, root: Path, runtime: RuntimeConfig | None = None) -> Path:
    """The local folder of a model: a path, `models:/name@alias`, `models:/name/3` or `runs:/id/path`.

    Raises:
        AyfError: there is no such folder, model, version, alias or run.
    """
    text = str(uri_or_path)
    if not text.startswith(("models:/", "runs:/")):
        path = Path(text) if Path(text).is_absolute() or Path(text).exists() else root / text
        if path.exists():
            return path.absolute()
        raise AyfError(f"there is no model at {text}; give a folder, models:/NAME@ALIAS, models:/NAME/1 or runs:/...")
    uri = tracking_uri(root, runtime)
    client = MlflowClient(uri)
    try:
        source = _model_source(client, text) if text.startswith("models:/") else text
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=uri)).absolute()
    except (MlflowException, OSError) as error:
        names = [model.name for model in client.search_registered_models()]
        there = f"registered models: {', '.join(sorted(names))}" if names else "no model is registered yet"
        raise AyfError(f"{text} is not in the MLflow store {uri}; {there}") from error


def keep_beside_model(uri_or_path: str | Path, file: Path, root: Path, runtime: RuntimeConfig | None = None) -> None:
    """Add a file to the artefacts of a registered model, so that `resolve_model` brings it along.

    A model that is a plain folder has its file already.
    """
    text = str(uri_or_path)
    if not text.startswith(("models:/", "runs:/")):
        return
    uri = tracking_uri(root, runtime)
    source = _model_source(MlflowClient(uri), text) if text.startswith("models:/") else text
    get_artifact_repository(source, tracking_uri=uri).log_artifact(str(file))


def _model_source(client: MlflowClient, uri: str) -> str:
    """Where the files of `models:/name@alias` or `models:/name/3` are; MlflowException if nowhere."""
    path = uri.removeprefix("models:/")
    if "@" in path:
        name, alias = path.rsplit("@", 1)
        version = client.get_model_version_by_alias(name, alias).version
    else:
        name, _, version = path.rpartition("/")
    return client.get_model_version_download_uri(name, str(version))


class DvcSource(DatasetSource):
    """Where a data set came from, in MLflow's terms: an output that DVC tracks."""

    def __init__(self, path: str, digest: str) -> None:
        self.path = path
        self.digest = digest

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    def load(self) -> str:
        return self.path

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> DvcSource:
        raise NotImplementedError("a DVC source is named, not guessed")

    def to_dict(self) -> dict[str, str]:
        return {"path": self.path, "digest": self.digest}

    @classmethod
    def from_dict(cls, source_dict: Mapping[str, str]) -> DvcSource:
        return cls(source_dict["path"], source_dict["digest"])


def _experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(EXPERIMENT)
    except MlflowException:  # another process was quicker
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        return found.experiment_id


def _known_run(client: MlflowClient, scratch: Path) -> Run | None:
    note = scratch / "mlflow_run_id"
    if not note.exists():
        return None
    try:
        run = client.get_run(note.read_text().strip())
    except MlflowException:
        return None  # another store, or a store that was deleted: a new run it is
    return run if run.info.lifecycle_stage == "active" else None


def _unfinished_run(client: MlflowClient, key: str | None) -> Run | None:
    """The run of a stage killed between creating the run and noting its id."""
    if key is None:
        return None
    wanted = f"tags.`{KEY_TAG}` = '{key}' and attributes.status != 'FINISHED'"
    found = client.search_runs([_experiment(client)], wanted, max_results=1)
    return found[0] if found else None


def _remember(scratch: Path, run_id: str) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    beside = scratch / "mlflow_run_id.partial"
    beside.write_text(run_id + "\n")
    os.replace(beside, scratch / "mlflow_run_id")


def _start_monitor(run_id: str, uri: str) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _says_nothing(name: str, value: float) -> bool:
    return name.startswith(DETAILS) or (name in COUNTS_OF_TROUBLE and value == 0)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
