"""Asks git about the project."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SECONDS = 20.0


def git(root: Path, *arguments: str) -> str | None:
    """What a git command prints in `root`; None where it fails, hangs, or there is no git or no repository."""
    try:
        # Without the lock of the index, which a person's own `git commit` would find taken.
        command = ["git", "--no-optional-locks", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
