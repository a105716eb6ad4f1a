"""DVC's lock file: which processes write (or read) which outputs of a project.

    {"write": {PATH: {"pid": 11, "cmd": "dvc repro"}}, "read": {PATH: [{"pid": 11, "cmd": "dvc repro"}]}}

DVC notes itself there before it starts a stage. What a killed one left, the next removes when no process has that
number. It writes the file in place: killed in that instant it leaves half a file, which no later `dvc` gets past.

    python -m pipelines.dvc_lock        mends that, in the project of this folder
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ayf_core.files import read_json


def writers(root: Path) -> set[int]:
    """The processes that write outputs of this project; none where the file is not there or not to be read."""
    try:
        return {int(holder["pid"]) for holder in read_json(_path(root))["write"].values()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return set()


def mend(root: Path, gone: Set[int] = frozenset()) -> None:
    """Remove the file where a killed dvc left half of it, else what the processes `gone` left in it.

    `gone` have ended, perhaps on another node: here others may have their numbers.
    """
    path = _path(root)
    if not path.exists():
        return
    with _held(root) as held, suppress(OSError, TypeError, LookupError, AttributeError):  # dvc will say what it is
        if not held:
            return
        try:
            noted = read_json(path)
        except ValueError:
            path.unlink()
            print(f"{path.relative_to(root)} was cut off when a dvc was killed: removed", file=sys.stderr)
            return
        kept = _without(noted, gone)
        if kept != noted:
            beside = path.with_name("rwlock.partial")
            beside.write_text(json.dumps(kept))
            os.replace(beside, path)


def _without(noted: dict[str, Any], gone: Set[int]) -> dict[str, Any]:
    return {
        "write": {path: holder for path, holder in noted.get("write", {}).items() if holder["pid"] not in gone},
        "read": {
            path: [holder for holder in holders if holder["pid"] not in gone]
            for path, holders in noted.get("read", {}).items()
        },
    }


@contextmanager
def _held(root: Path) -> Iterator[bool]:
    """While no dvc changes the file; False where one has been at it for seconds."""
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.lock import make_lock

    folder = _path(root).parent
    try:
        hardlink = bool(Config(dvc_dir=str(root / ".dvc"))["core"].get("hardlink_lock"))
        lock = make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder), hardlink_lock=hardlink)
        lock.lock()
    except DvcException:
        yield False
        return
    try:
        yield True
    finally:
        lock.unlock()


def _path(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "rwlock"


if __name__ == "__main__":
    mend(Path.cwd())
