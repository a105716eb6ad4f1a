"""The MLflow store that runs are kept in: which one, and whether it is ready.

By default a SQLite file in the project. MLflow creates its schema in many steps: two processes that meet a fresh file
crash in them, and one that is killed among them leaves a file that nobody can open. So a new store is made beside its
place, under a lock, and renamed to it once it is whole.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from ayf_core.errors import AyfError
from ayf_core.files import first_line, only_one_process
from dashboards.store import answers, through_proxy
from pipelines.paths import require_path_for_store
from pipelines.redaction import apart
from pipelines.tracking.tags import EXPERIMENT

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

SERVER = ("http://", "https://")

for _noisy in ("alembic", "mlflow"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


def tracking_uri(root: Path, runtime: RuntimeConfig | None = None) -> str:
    """Where runs are kept: the runtime's `tracking_uri`, else MLFLOW_TRACKING_URI, else the project's store.

    The store is ready to be written when this returns: a server answers, a SQLite file has its schema.

    Raises:
        AyfError: the server does not answer, or the address is a plain folder or a database.
    """
    uri, source = _named_store(runtime)
    if not uri:
        return ensure_store(root)
    if uri.startswith(SERVER):
        if not answers(uri):
            raise AyfError(
                f"the MLflow server {uri} does not answer{through_proxy(uri)}; start it (ayf ui) or unset {source}"
            )
        return uri
    if uri.startswith("sqlite:///"):
        database = (root / uri.removeprefix("sqlite:///")).absolute()
        return _ready_sqlite(database, database.parent / "artifacts")
    if uri.startswith("file:") or "://" not in uri:
        raise AyfError(f"{source} = {uri}: MLflow keeps no runs in folders; use sqlite:///FILE.db or http://...")
    if uri.startswith(("postgresql", "mysql", "mssql")):
        raise AyfError(
            f"{source} names a database ({apart(uri)[0]}): serve it (ayf serve), name the server's http://..."
        )
    return uri


def server_address(runtime: RuntimeConfig | None = None) -> str | None:
    """The server that runs are sent to, whether or not it answers; None where they are kept in a file."""
    uri, _ = _named_store(runtime)
    return uri if uri and uri.startswith(SERVER) else None


def _named_store(runtime: RuntimeConfig | None) -> tuple[str | None, str]:
    """The address that is configured, and where. Credentials in it go where MLflow looks for them and nobody prints."""
    configured = runtime.tracking_uri if runtime else None
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith(SERVER):
        uri, user, password = apart(uri)
        if user:
            os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password or ""
    return uri, "tracking_uri in conf/runtime" if configured else "MLFLOW_TRACKING_URI"


def ensure_store(root: Path) -> str:
    """Create the project's own store if need be; returns its absolute URI."""
    folder = root.absolute() / "mlruns"
    return _ready_sqlite(folder / "mlflow.db", folder / "artifacts")


def _ready_sqlite(database: Path, artifacts: Path) -> str:
    require_path_for_store(database)
    database.parent.mkdir(parents=True, exist_ok=True)
    with only_one_process(database.with_name(database.name + ".lock")):
        if not database.exists():
            unfinished = database.with_name(f".{database.name}.new")
            for left in database.parent.glob(f"{unfinished.name}*"):
                left.unlink()
            _with_experiment(unfinished, artifacts)
            unfinished.rename(database)
        return _with_experiment(database, artifacts)


def _with_experiment(database: Path, artifacts: Path) -> str:
    """Open a store, the project's experiment and the registry's tables made where they are missing; its URI."""
    uri = f"sqlite:///{database}"
    try:
        client = MlflowClient(uri, registry_uri=uri)
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location=artifacts.as_uri())
            client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        said = f"the MLflow store {database} cannot be opened ({first_line(error)})"
        raise AyfError(f"{said}; put a copy back, or move it away: the next run starts a new one") from error
    return uri


def experiment(client: MlflowClient) -> str:
    """The id of the project's experiment, created where there is none."""
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
