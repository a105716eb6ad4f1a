"""Finds a model where a person names it: a folder, or MLflow's registry or runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from pipelines.tracking.store import tracking_uri

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig


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
        raise AyfError(f"{text} is not in the MLflow store {uri}; {_registered(client)}") from error


def _registered(client: MlflowClient) -> str:
    try:
        names = sorted(model.name for model in client.search_registered_models())
    except MlflowException as error:
        return f"nor does it name its models: {first_line(error)[:200]}"
    return f"registered models: {', '.join(names)}" if names else "no model is registered yet"


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
