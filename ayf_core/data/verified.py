"""Checksums of large files, computed once on a machine and remembered while the files stay as they were.

Trusted is what the operating system says of a file: path, inode, size, and the times of its last change (mtime, ctime)
to the nanosecond. A tool that writes into a file and sets its mtime back is noticed all the same, for no tool sets the
ctime. Not noticed is what changes bytes without the system's knowledge, such as a disk that decays, until the file is
copied, restored, or the memory is deleted; nor is somebody who writes into the memory itself.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from platform import node
from typing import Any

from ayf_core.files import read_json, write_whole

SETTLED_SECONDS = 2.0
"""A younger file is not remembered: its next change might fall into the same tick of the file system's clock."""

_Mark = list[int]


class VerifiedFiles:
    """Remembers checksums for one machine.

    Several processes may use one memory at once: the last to write wins, and what it did not know of is computed again.

    Args:
        folder: holds a file for each machine, for a folder on a network is not the same to all; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._memory = folder / f"{node() or 'this machine'}.json"

    def sha256(self, file: Path) -> str:
        """Checksum of a file's bytes, computed where it is not remembered. Raises OSError where it cannot be read."""
        file = Path(os.path.abspath(file))
        before = _mark(file)
        known = self._known().get(str(file))
        if isinstance(known, dict) and known.get("mark") == before and isinstance(known.get("sha256"), str):
            return known["sha256"]
        began = time.time_ns()
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        mtime, ctime = before[-2:]
        if _mark(file) == before and began - max(mtime, ctime) > SETTLED_SECONDS * 1e9:
            self._remember(file, {"mark": before, "sha256": digest})
        return digest

    def _known(self) -> dict[str, Any]:
        """What is remembered; nothing where the memory is missing or no memory at all."""
        try:
            known = read_json(self._memory)
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _remember(self, file: Path, entry: dict[str, Any]) -> None:
        known = {name: kept for name, kept in self._known().items() if os.path.exists(name)}
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._memory, json.dumps(known | {str(file): entry}))


def _mark(file: Path) -> _Mark:
    status = file.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
