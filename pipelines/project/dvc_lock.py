"""DVC's two lock files. `dvc.lock` is what it has committed; `.dvc/tmp/rwlock` which processes write (or read) what:

    {"write": {PATH: {"pid": 11, "cmd": "dvc repro"}}, "read": {PATH: [{"pid": 11, "cmd": "dvc repro"}]}}

DVC notes itself there before it starts a stage. What a killed one left, the next removes when no process has that
number. It writes both files in place: killed in that instant it leaves half a file, which no later `dvc` gets past.

    python -m pipelines.project.dvc_lock        mends that, in the project of this folder
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from ayf_core.files import read_json, write_whole

LOCK = "dvc.lock"


def writers(root: Path) -> set[int]:
    """The processes that write outputs of this project; none where the file is not there or not to be read."""
    try:
        return {int(holder["pid"]) for holder in read_json(_path(root))["write"].values()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return set()


def committed(root: Path) -> dict[str, Any]:
    """The stages of `dvc.lock` by name; none where it is not there or cut off.

    Another dvc, of another stage, may be writing it: for some seconds an unreadable one is read again.
    """
    path = root / LOCK
    for _ in range(20):
        try:
            document = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            return {}
        except (yaml.YAMLError, UnicodeDecodeError):
            document = None
        if isinstance(document, dict):
            stages = document.get("stages") or {}
            return {name: stage for name, stage in stages.items() if isinstance(stage, dict)}
        time.sleep(0.1)
    return {}


def mend(root: Path, gone: Set[int] = frozenset()) -> None:
    """Remove a file of which a killed dvc left half, and what the processes `gone` left in `rwlock`.

    `gone` have ended, perhaps on another node: here others may have their numbers. Of a `dvc.lock` that is removed
    nothing is lost but the record: `runs/` and DVC's cache have what the stages made, and they say so again.
    """
    _mend_lock(root)
    _mend_rwlock(root, gone)


def _mend_lock(root: Path) -> None:
    path = root / LOCK
    if not path.exists() or _is_whole(path):
        return
    with _held(root, "lock") as held, suppress(OSError):
        if held and not _is_whole(path):  # a dvc that was writing it is done
            kept = path.with_name("dvc.lock.cut-off")
            os.replace(path, kept)
            print(f"{LOCK} was cut off when a dvc was killed: moved to {kept.name}", file=sys.stderr)


def _is_whole(path: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, Invalid, UnicodeDecodeError):
        return False
    except OSError:
        return True  # dvc will say what it is
    return True


def _mend_rwlock(root: Path, gone: Set[int]) -> None:
    path = _path(root)
    if not path.exists():
        return
    with _held(root, "rwlock.lock") as held, suppress(OSError, TypeError, LookupError, AttributeError):  # as above
        if not held:
            return
        try:
            noted = read_json(path)
        except ValueError:
            path.unlink()
            print(f"{path.relative_to(root)} was cut off when a dvc was killed: removed", file=sys.stderr)
            return
        kept = _without(noted, gone | _zombies(noted))
        if kept != noted:
            write_whole(path, json.dumps(kept))


def _zombies(noted: dict[str, Any]) -> set[int]:
    """Holders that have ended although nobody has asked how: DVC takes them for alive, in a container for ever."""
    import psutil

    found = set()
    read = [holder for holders in noted.get("read", {}).values() for holder in holders]
    for number in {holder["pid"] for holder in [*noted.get("write", {}).values(), *read]}:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                found.add(number)
    return found


def _without(noted: dict[str, Any], gone: Set[int]) -> dict[str, Any]:
    return {
        "write": {path: holder for path, holder in noted.get("write", {}).items() if holder["pid"] not in gone},
        "read": {
            path: [holder for holder in holders if holder["pid"] not in gone]
            for path, holders in noted.get("read", {}).items()
        },
    }


@contextmanager
def _held(root: Path, guard: str) -> Iterator[bool]:
    """While no dvc changes the file that `guard` guards; False where one has been at it for seconds."""
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.lock import make_lock

    folder = _path(root).parent
    try:
        hardlink = bool(Config(dvc_dir=str(root / ".dvc"))["core"].get("hardlink_lock"))
        lock = make_lock(str(folder / guard), tmp_dir=str(folder), hardlink_lock=hardlink)
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
