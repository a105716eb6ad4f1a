"""Characters in a folder's path that a program beneath cannot take: refused in one line, before work starts."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from ayf_core.errors import AyfError

_FOR_SQLITE = re.compile(r"\?|%[0-9a-fA-F]{2}|[\r\n]")
"""The store's address is a URL: `?` would begin its query, `%20` be read as a space."""

_FOR_MIGRATIONS = re.compile(r"%")
"""MLflow hands the folder of its own package to a reader of settings that fills in values at `%`."""

_FOR_SLURM = re.compile(r"""[%\\'"\r\n]""")
"""Slurm fills in the names of logs at `%`, and has quotes of its own."""

_FOR_RAY = re.compile(r"""[\\\r\n]""")
"""Ray writes its workers' command with the quotes of Windows and reads it with those of a shell."""


def require_path_for_store(database: Path) -> None:
    """Raises AyfError where MLflow could not make or open a SQLite file of this path."""
    _require(database.parent, _FOR_SQLITE, "MLflow", "move the project, or name a server as tracking_uri")
    mlflow = importlib.util.find_spec("mlflow")
    if mlflow is not None and mlflow.origin is not None:
        _require(Path(mlflow.origin).parent, _FOR_MIGRATIONS, "MLflow", "move the environment that it is installed in")


def require_path_for_slurm(root: Path) -> None:
    """Raises AyfError where Slurm could not write logs below this project."""
    _require(root, _FOR_SLURM, "Slurm", "move the project")


def require_path_for_ray() -> None:
    """Raises AyfError where Ray could not start workers of this Python, from where Ray is installed."""
    ray = importlib.util.find_spec("ray")
    for path in (sys.executable, ray.origin if ray else None):
        # Only an argument with a space is put into quotes, and within those an apostrophe is one.
        bad = _FOR_RAY if path is None or re.search(r"\s", path) else re.compile(rf"'|{_FOR_RAY.pattern}")
        if path is not None:
            _require(Path(path).parent, bad, "Ray", "move the environment, or set mode: inline in conf/runtime")


def _require(folder: Path, bad: re.Pattern[str], program: str, remedy: str) -> None:
    found = bad.search(str(folder))
    if found:
        shown = found[0] if found[0].isprintable() else repr(found[0])
        raise AyfError(f"the path {str(folder)!r} has {shown} in it, which {program} cannot take: {remedy}")
