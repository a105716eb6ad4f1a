"""Reads what others may have written, or are writing: JSON, names of files that may point anywhere, live folders."""

from __future__ import annotations

import gc
import glob
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ayf_core.errors import AyfError


@contextmanager
def no_collection() -> Iterator[None]:
    """Put off the collection of garbage while a parser may run into the limit of recursion.

    What is collected there is closed there: a file's or generator's end would fail for want of depth, unseen.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for what is none, nesting too deep to be read included."""
    try:
        with no_collection():
            return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises OSError, or ValueError as `parse_json` does."""
    return parse_json(path.read_bytes())


def write_whole(path: Path, content: str | bytes, *, to_disk: bool = False) -> None:
    """Write beside and rename: a reader, or a kill, finds the old content or the new one, never half of it.

    Several processes may write one path at once: each writes beside under a name of its own.

    Args:
        content: a text is written as UTF-8.
        to_disk: wait until the content is there even after a power failure.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if to_disk:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def only_one_process(lock: Path) -> Iterator[None]:
    """Hold a lock, a file of its own, and wait for it first; the system frees it however the process ends."""
    import fcntl  # not on every system, unlike the rest of this file

    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def first_line(error: BaseException | str) -> str:
    """What an error of a library says, in one line; of one that says nothing the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def inside(folder: str | Path, name: Any, named_in: str | Path) -> Path:
    """`folder / name`, for a name that was read from a file: plain words below the folder, on every system.

    Links are followed: DVC may keep what it tracks as links into its cache.

    Args:
        named_in: the file that names it, for the message.

    Raises:
        AyfError: the name is no text, is absolute, or climbs out of the folder.
    """
    bad = not isinstance(name, str) or not name or "\0" in name
    if not bad:
        parts = PurePosixPath(name).parts + PureWindowsPath(name).parts
        bad = ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor != ""
    if bad:
        raise AyfError(f"{named_in} names {name!r}, which is no file inside {folder}: do not use it, get it again")
    return Path(folder) / name


def found_below(folder: Path, name: str) -> list[Path]:
    """What is called `name` (a pattern of `glob`) anywhere below `folder`, while another process writes there.

    `Path.rglob` raises FileNotFoundError (before Python 3.13) for a folder that is renamed while it looks into it, as
    a checkpoint is. Hidden folders, unfinished ones, are not searched.
    """
    return [folder / found for found in glob.glob(f"**/{name}", root_dir=folder, recursive=True)]
