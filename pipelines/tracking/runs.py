"""Opens MLflow runs: one a stage, continued when the stage is, with the lineage of what it read and made.

The only place of the project that opens MLflow runs and writes to them. A server that is away is waited for; nothing
secret passes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from ayf_core.errors import AyfError
from ayf_core.files import first_line, write_whole
from pipelines.redaction import without_secrets
from pipelines.settings.words import literal
from pipelines.tracking.lineage import find_run_by_output, git_tags
from pipelines.tracking.retry import Retry, may_pass, retry_for
from pipelines.tracking.store import experiment, server_address, tracking_uri
from pipelines.tracking.tags import KIND_TAG, SCRATCH_TAG

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.settings.runtime import RuntimeConfig

DETAILS = ("derivative_norm/", "discriminator/learning_rate")
"""Curves that MLflow's pages are better without: eight more charts a run, or another one's copy."""
COUNTS_OF_TROUBLE = ("masked_samples", "skipped_steps")
"""Zero in a healthy run: logged where they are not."""

_METRICS_A_BATCH = 1000  # MLflow's limits
_PARAMS_A_BATCH = 100


P = ParamSpec("P")
T = TypeVar("T")


def _retried(
    method: Callable[Concatenate[StageRun, P], T],
) -> Callable[Concatenate[StageRun, P], T]:
    """A method that is repeated while the store is away; what it does may be done twice."""

    @wraps(method)
    def waiting(self: StageRun, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.retry.call(lambda: method(self, *args, **kwargs))

    return waiting


class StageRun:
    """An open MLflow run of a stage. Everything it writes may be written again after an interruption.

    Where the store is away, every method but `offer_metrics` waits, as its `retry` says.
    """

    def __init__(self, client: MlflowClient, run: Run, uri: str, system_metrics: bool, retry: Retry) -> None:
        self.id: str = run.info.run_id
        self.experiment: str = run.info.experiment_id
        self.uri = uri
        self.retry = retry
        self._client = client
        self._artifacts: str = run.info.artifact_uri
        self._params_known = dict(run.data.params)
        self._continued = bool(run.data.metrics)
        self._last_step: dict[str, int] = {}
        self._monitor = _start_monitor(self.id, uri) if system_metrics else None

    @_retried
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Note settings as params.yaml would write them, nested ones under dotted names.

        Those noted before are left as they are.
        """
        new = [Param(k, without_secrets(literal(v))) for k, v in _flat(params).items() if k not in self._params_known]
        for start in range(0, len(new), _PARAMS_A_BATCH):
            self._client.log_batch(self.id, params=new[start : start + _PARAMS_A_BATCH])
        self._params_known.update({param.key: param.value for param in new})

    @_retried
    def log_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records as `offer_metrics` does, and wait where the store is away."""
        self.offer_metrics(records)

    def offer_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records `{"step", "time", "metrics"}`; a step that a metric already has is skipped.

        Few curves say more than many: `DETAILS` and trouble that there was none of are left out. A point that has
        reached the store although its answer was lost is the same row when it is told again.

        Raises:
            Exception: whatever the store raises, at once; all records may be offered again.
        """
        try:
            metrics = self._new_points(records)
            for start in range(0, len(metrics), _METRICS_A_BATCH):
                self._client.log_batch(self.id, metrics=metrics[start : start + _METRICS_A_BATCH])
        except Exception:
            self._continued = True  # ask the store again what it has: the records will be offered once more
            self._last_step.clear()
            raise

    def _new_points(self, records: Sequence[Mapping[str, Any]]) -> list[Metric]:
        metrics = []
        for record in records:
            for name, value in record["metrics"].items():
                if _says_nothing(name, value) or record["step"] <= self._last_logged(name):
                    continue
                self._last_step[name] = record["step"]
                metrics.append(Metric(name, float(value), int(record["time"] * 1000), record["step"]))
        return metrics

    def log_values(self, values: Mapping[str, float], step: int = 0) -> None:
        """Add results that belong to no training step, such as `fd/nfe_4`."""
        import time

        self.log_metrics([{"step": step, "time": time.time(), "metrics": values}])

    @_retried
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or a folder's content, with the run under `folder`."""
        if path.is_dir():
            self._client.log_artifacts(self.id, str(path), folder)
        else:
            self._client.log_artifact(self.id, str(path), folder)

    @_retried
    def log_image(self, name: str, image: Image) -> None:
        """Keep a picture with the run as `name` (for example `samples/nfe_4.png`)."""
        self._client.log_image(self.id, image, artifact_file=name)

    @_retried
    def log_step_image(self, key: str, step: int, image: Image) -> None:
        """Keep a picture under `key` at a step: MLflow lays those of several runs side by side, with a slider."""
        # MLflow puts time and a random id into the name: an image of an earlier attempt would be doubled.
        # (Its separator was % in older versions; the small copy is written last.)
        there = [Path(file.path).name.replace("%", "+") for file in self._client.list_artifacts(self.id, "images")]
        if not any(name.startswith(f"{key}+step+{step}+") and "compressed" in name for name in there):
            self._client.log_image(self.id, image, key=key, step=step)

    @_retried
    def log_text(self, name: str, text: str) -> None:
        """Keep a text with the run as `name`."""
        self._client.log_text(self.id, without_secrets(text), name)

    @_retried
    def log_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep a document with the run as `name` (for example `evaluation.json`)."""
        self._client.log_dict(self.id, dict(document), name)

    @_retried
    def set_tags(self, tags: Mapping[str, str]) -> None:
        told = [RunTag(key, without_secrets(str(value))) for key, value in tags.items()]
        self._client.log_batch(self.id, tags=told)

    def set_note(self, markdown: str) -> None:
        """The description that MLflow shows above everything else of the run; replaces the one before."""
        self.set_tags({MLFLOW_RUN_NOTE: markdown})

    @_retried
    def read(self) -> tuple[dict[str, str], dict[str, float]]:
        """The run's tags, and each metric's last value, as they are in the store now."""
        data = self._client.get_run(self.id).data
        return dict(data.tags), dict(data.metrics)

    @_retried
    def maker_of(self, path: str, fingerprint: str) -> str | None:
        """The id of the newest run of this store that published `path` with these contents."""
        return find_run_by_output(path, fingerprint, self.uri)

    @_retried
    def log_dataset_input(self, name: str, digest: str, context: str = "training") -> None:
        """Note a data set the run read, by DVC's name and digest; MLflow's UI shows and compares it."""
        source = json.dumps({"path": name, "digest": digest})
        # 36 characters is what MLflow allows, and the length of DVC's MD5 of a folder ("....dir").
        dataset = Dataset(name=name, digest=digest[:36], source_type="dvc", source=source)
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self.id, [DatasetInput(dataset, tags)])

    @_retried
    def register_model(self, folder: Path, name: str, alias: str) -> str:
        """Put a model folder into the registry as `models:/<name>@<alias>`; returns the version.

        A run registers one version under a name: a repeated call finds it and sets the alias.
        """
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._registered_version(name)
        if version is None:
            self._client.log_artifacts(self.id, str(folder), f"models/{name}")
            source = f"{self._artifacts}/models/{name}"
            version = self._client.create_model_version(name, source, run_id=self.id).version
        self._client.set_registered_model_alias(name, alias, version)
        return str(version)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run as FINISHED, FAILED or KILLED.

        Where the store is away, a run that did not finish stays open: the same command goes on with it.
        """
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        close = partial(self._client.set_terminated, self.id, status)
        if status == "FINISHED":
            self.retry.call(close)
            return
        try:
            close()
        except Exception as error:
            if not may_pass(error):
                raise

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
        tags: more tags, such as the stage's key.
        kind: stage, sweep, trial or confirmation.
        parent: the id of the run under which MLflow shows this one.
        code: `git_tags`, where the caller knows them already.
    """
    uri = server_address(runtime) or tracking_uri(root, runtime)  # a server that is away is waited for
    retry = retry_for(runtime)
    client = MlflowClient(uri)
    nested = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    known_by = {KIND_TAG: kind, "dvc.stage": stage, **(git_tags(root) if code is None else code), **nested, **tags}
    known_by[SCRATCH_TAG] = _name_of(scratch)
    try:
        run, continued = retry.call(lambda: _found_or_created(client, scratch, run_name, known_by))
    except MlflowException as error:
        remedy = "check tracking_uri, and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise AyfError(f"MLflow ({uri}) refuses to open a run ({first_line(error)}): {remedy}") from error
    _note(scratch / "mlflow_run_id", run.info.run_id)
    opened = StageRun(client, run, uri, runtime.system_metrics, retry)
    if continued:
        opened.set_tags(known_by)
    opened.log_params(params)
    return opened


def _found_or_created(client: MlflowClient, scratch: Path, run_name: str, tags: Mapping[str, str]) -> tuple[Run, bool]:
    """The run that `scratch` remembers, or a new one; and whether it was there."""
    name = without_secrets(run_name)
    run = _known_run(client, scratch) or _unnoted_run(client, tags[SCRATCH_TAG])
    if run is not None:
        client.update_run(run.info.run_id, status="RUNNING", name=name)
        return run, True
    # The scratch's name is there from the first moment: a kill before the id is noted does not double the run.
    told = {key: without_secrets(str(value)) for key, value in tags.items()}
    return client.create_run(experiment(client), run_name=name, tags=told), False


def _known_run(client: MlflowClient, scratch: Path) -> Run | None:
    note = scratch / "mlflow_run_id"
    if not note.exists():
        return None
    try:
        run = client.get_run(note.read_text().strip())
    except MlflowException as error:
        if may_pass(error):
            raise
        return None  # another store, or a store that was deleted: a new run it is
    return run if run.info.lifecycle_stage == "active" else None


def _unnoted_run(client: MlflowClient, scratch_name: str) -> Run | None:
    """The run of a stage killed, or a server lost, between creating the run and noting its id."""
    wanted = f"tags.`{SCRATCH_TAG}` = '{scratch_name}'"
    found = client.search_runs([experiment(client)], wanted, max_results=1)
    return found[0] if found else None


def _name_of(scratch: Path) -> str:
    """A random name of a scratch folder, noted before any run of it is created."""
    note = scratch / "mlflow_scratch_name"
    if not note.exists():
        _note(note, secrets.token_hex(8))
    return note.read_text().strip()


def _note(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text + "\n")


def _start_monitor(run_id: str, uri: str) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


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
