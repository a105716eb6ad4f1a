"""Opens an MLflow store and reads files of its runs; what goes wrong is one line that names the remedy."""

from __future__ import annotations

import gc
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dashboards.network import proxy_variable, reach_local_servers_directly

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

# Before MLflow is imported: no telemetry, no bar for each file, no minutes of retries where a server went away.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
reach_local_servers_directly()

EXPERIMENT = "align-your-flow"
_PROBE_SECONDS = 3.0


class StoreError(Exception):
    """There is no such store, experiment, sweep or run, or a server does not answer. One line, with the remedy."""


def stamp(uri: str) -> str:
    """Changes whenever the store may have: what was read under the same stamp need not be read again.

    Of a SQLite file the time of its last write; a server does not tell, so its stamp lasts ten seconds.
    """
    if uri.startswith("sqlite:///"):
        database = uri.removeprefix("sqlite:///")
        files = [Path(database), Path(database + "-wal")]
        return "/".join(str(file.stat().st_mtime_ns) for file in files if file.exists())
    import time

    return str(int(time.time() / 10))


def read_runs(uri: str, experiment: str = EXPERIMENT) -> list[Run]:
    """Every run of an experiment, newest first.

    Raises:
        StoreError: no store, no such experiment, no answer.
    """
    with _one_line(uri):
        found = client(uri).get_experiment_by_name(experiment)
        if found is None:
            names = ", ".join(experiments(uri)) or "none"
            raise StoreError(f"the MLflow store {uri} has no experiment {experiment}; it has {names}")
        runs: list[Run] = []
        token = None
        while True:
            with _collector_at_rest():
                page = client(uri).search_runs([found.experiment_id], max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return sorted(runs, key=lambda run: run.info.start_time, reverse=True)


def read_run(uri: str, run_id: str) -> Run:
    """One run. Raises StoreError where there is none of that id."""
    with _one_line(uri):
        return client(uri).get_run(run_id)


def read_history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in order of steps; of a step written twice the later value."""
    with _one_line(uri):
        points = client(uri).get_metric_history(run_id, metric)
    return sorted({point.step: point.value for point in sorted(points, key=lambda p: p.timestamp)}.items())


def artefact(uri: str, run_id: str, path: str) -> bytes | None:
    """A file kept with a run; None where the run has none of that name."""
    from mlflow.exceptions import MlflowException

    try:
        return Path(client(uri).download_artifacts(run_id, path)).read_bytes()
    except (MlflowException, OSError):
        return None


def artefacts(uri: str, run_id: str, folder: str) -> list[str]:
    """Paths of the files a run keeps under a folder; empty where there are none."""
    from mlflow.exceptions import MlflowException

    try:
        return [file.path for file in client(uri).list_artifacts(run_id, folder) if not file.is_dir]
    except (MlflowException, OSError):
        return []


def experiments(uri: str) -> list[str]:
    """Names of the store's experiments that have a name of somebody's choice, in order of the alphabet."""
    with _one_line(uri):
        found = client(uri).search_experiments()
    return sorted(experiment.name for experiment in found if experiment.name != "Default")


def client(uri: str) -> MlflowClient:
    """A client of the store. Raises StoreError where there is nothing to open: a read never creates a store."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise StoreError(f"there is no MLflow store {uri}: `dvc repro` makes the project's own, in mlruns/")
    return _client(uri)


@lru_cache(maxsize=8)
def _client(uri: str) -> MlflowClient:
    if uri.startswith(("http://", "https://")):
        if not answers(uri):
            message = (
                f"the MLflow server {uri} does not answer{through_proxy(uri)}: start it (`ayf ui`) or name another"
            )
            raise StoreError(message) from ConnectionError(uri)
    elif "://" not in uri or uri.startswith("file:"):
        raise StoreError(f"{uri} is no MLflow store: name one as sqlite:////FOLDER/mlflow.db or http://HOST:PORT")
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def answers(uri: str) -> bool:
    """Whether a server answers at an address, within three seconds; any answer of a web server is one."""
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # a proxy or another version may not know /health
    except (OSError, ValueError):
        return False


def through_proxy(uri: str) -> str:
    """For a message about a server that does not answer: which proxy stands before it; empty where none does."""
    variable = proxy_variable(uri)
    return f" through the proxy of {variable} (NO_PROXY names servers that need none)" if variable else ""


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """No garbage collection inside: SQLAlchemy makes an object a row, and looking through them takes most of the time.

    For 500 runs 0.25 s of processor time instead of 0.7.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _one_line(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        said = " ".join(str(error).split())[:200]
        raise StoreError(f"the MLflow store {uri} cannot be read ({said}): check it with `ayf doctor`") from error
