"""Where a project is, and where its presets and runtimes lie."""

from __future__ import annotations

from pathlib import Path

from ayf_core.errors import AyfError

PARAMS_FILE = "params.yaml"


def conf_folder(root: Path) -> Path:
    """Where presets and runtimes live: the project's `conf`, else the one beside this package."""
    own = root / "conf"
    return own if (own / "preset").is_dir() else Path(__file__).resolve().parents[2] / "conf"


def project_root(start: Path | None = None) -> Path:
    """The project that `start` (default: the working directory) lies in.

    Raises:
        AyfError: neither the folder nor any above it holds a project.
    """
    start = start or Path.cwd()
    found = find_project(start)
    if found is None:
        raise AyfError(f"no project in {start.resolve()} or above it: change into the project's folder")
    return found


def find_project(start: Path) -> Path | None:
    """The project that `start` lies in, if any."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() or (folder / "conf" / "preset").is_dir():
            return folder
    return None
