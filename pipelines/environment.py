"""Before anything is imported: the Python that has the packages, and one line where Ctrl-C comes meanwhile.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

_NEEDED = ("yaml", "torch", "mlflow", "ray")
_TRIED = "AYF_PYTHON"
"""Environment variable: the Python that this command was started again with."""


@contextmanager
def one_line_at_ctrl_c(line: str) -> Iterator[None]:
    """While packages are imported: nothing has begun, so end at once. They would turn the exception into others."""

    def end(signum: int, frame: FrameType | None) -> None:
        os.write(2, f"\n{line}\n".encode())
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for a job in the background
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    yield
    signal.signal(signal.SIGINT, before)


def use_environment() -> None:
    """Go on in the Python of the dvc that calls, or of .venv beside dvc.yaml, where this one lacks packages.

    `.venv/bin/dvc repro` in a shell whose environment is another one starts the stages with that shell's Python.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    if _TRIED not in os.environ:
        for python in (*_pythons_above(), ".venv/bin/python"):
            if os.access(python, os.X_OK) and os.path.abspath(python) != sys.executable:
                environment = {**os.environ, _TRIED: python}
                os.execve(python, [python, "-m", "pipelines", *sys.argv[1:]], environment)
    print(
        f"error: {sys.executable} has no {missing[0]}: activate the environment of this project "
        "(. .venv/bin/activate), or run `make repro`",
        file=sys.stderr,
    )
    raise SystemExit(1)


def _pythons_above() -> Iterator[str]:
    """The interpreters of the processes that started this one, as they were called; the nearest first."""
    process = os.getppid()
    for _ in range(4):  # a shell, dvc, perhaps make
        if process <= 1:
            return
        words, process = _called_as(process)
        if words and Path(words[0]).name.startswith("python"):
            yield words[0]


def _called_as(process: int) -> tuple[list[str], int]:
    """A process's command line and its parent; nothing and 0 where they are not to be read."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
        after_name = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2]
        return words, int(after_name.split()[1])
    except OSError:
        pass  # not Linux
    try:
        listed = subprocess.run(
            ["ps", "-o", "ppid=,args=", "-p", str(process)], capture_output=True, text=True, check=False
        ).stdout.split()
    except OSError:
        return [], 0
    return listed[1:], int(listed[0]) if listed else 0
