"""What a stage's body may write down about its run, and a record that keeps none of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


class RunRecord(Protocol):
    """Where a stage writes: `pipelines.tracking.runs.StageRun` sends it to MLflow."""

    def offer_metrics(self, records: Sequence[Mapping[str, Any]]) -> None: ...

    def log_values(self, values: Mapping[str, float], step: int = 0) -> None: ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...

    def log_image(self, name: str, image: Image) -> None: ...

    def log_step_image(self, key: str, step: int, image: Image) -> None: ...

    def log_json(self, name: str, document: Mapping[str, Any]) -> None: ...

    def log_dataset_input(self, name: str, digest: str, context: str = "training") -> None: ...

    def register_model(self, folder: Path, name: str, alias: str) -> str: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...


class NoRecord:
    """Keeps nothing: a trial's stages are parts of one run, which the sweep's driver writes."""

    def offer_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def log_values(self, values: Mapping[str, float], step: int = 0) -> None:
        """Nothing."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Nothing."""

    def log_image(self, name: str, image: Image) -> None:
        """Nothing."""

    def log_step_image(self, key: str, step: int, image: Image) -> None:
        """Nothing."""

    def log_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_dataset_input(self, name: str, digest: str, context: str = "training") -> None:
        """Nothing."""

    def register_model(self, folder: Path, name: str, alias: str) -> str:
        """No version: a trial's model is in no registry."""
        return ""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""
