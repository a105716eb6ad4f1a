"""One Ray for all stages of a chain: started by the first that needs it, gone with the chain however that ends.

The chain is a process, `dvc repro` or `ayf repro`, which the environment variable AYF_CHAIN names. A keeper, a process
apart, starts the Ray and notes its address in the project's `runs/ray/`, for this account alone. It ends once the
chain's process is gone and no stage uses the Ray any more: every stage holds a lock that the system frees.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from ayf_core.files import only_one_process, read_json, write_whole
from pipelines.execution.existing_ray import ExistingRay
from pipelines.execution.own_ray import OwnRay, interpreter_of_workers, prepare_environment, token_in_use

CHAIN = "AYF_CHAIN"
"""Environment variable: the chain's process, and how many stages it runs at once (`1234/2`)."""

FOLDER = "runs/ray"

_START_SECONDS = 120.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Chain:
    """The process whose stages share a Ray.

    Attributes:
        root: the project.
        process: its number.
        at_once: so many stages may need their workers at one time.
    """

    root: Path
    process: int
    at_once: int = 1

    @classmethod
    def of_environment(cls, root: Path) -> Chain | None:
        """The chain that AYF_CHAIN names; None for a stage that is run by itself."""
        number, _, at_once = os.environ.get(CHAIN, "").partition("/")
        if not (number.isdigit() and at_once.isdigit()):
            return None
        return cls(root.absolute(), int(number), int(at_once))

    def announce(self) -> None:
        """Have the stages that this process starts, or the one that it is, know the chain."""
        os.environ[CHAIN] = f"{self.process}/{self.at_once}"

    @property
    def note(self) -> Path:
        return self.root / FOLDER / f"{self.process}.json"

    @property
    def users(self) -> Path:
        """Locked by every stage that uses the Ray, and in the end by the keeper."""
        return self.note.with_suffix(".users")

    @property
    def kept(self) -> Path:
        """Locked by the keeper as long as it lives."""
        return self.note.with_suffix(".kept")


@dataclass(frozen=True)
class Note:
    """What the keeper tells: how to reach its Ray, and what that was started with.

    Attributes:
        devices: CUDA_VISIBLE_DEVICES of the first stage.
    """

    address: str
    token: str
    logs: str
    cpus: int
    devices: str | None
    python: str

    def fits(self, cpus: int) -> bool:
        """Whether it has room for a stage of this process, and is of its settings."""
        return self.cpus >= cpus and (self.devices, self.python) == _like_this_process()


def _like_this_process() -> tuple[str | None, str]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), sys.executable


class SharedRay:
    """A connection to the Ray of a chain, which is started where there is none yet.

    Attributes:
        logs: where that Ray writes.
    """

    logs: Path

    def __init__(self, note: Note, using: IO[str]) -> None:
        self.logs = Path(note.logs)
        self._note = note
        self._using = using

    def __enter__(self) -> SharedRay:
        with ExitStack() as stack:
            stack.enter_context(self._using)
            stack.enter_context(token_in_use(self._note.token))
            stack.enter_context(ExistingRay(self._note.address, interpreter_of_workers()))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def shared_ray(chain: Chain, cpus: int) -> SharedRay | None:
    """The Ray of a chain for a stage that needs so many CPUs; None where it cannot be had: one of its own tells why.

    A Ray of other settings (fewer CPUs, other GPUs, another Python) is not used.
    """
    folder = chain.root / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        with only_one_process(chain.users.with_suffix(".lock")):
            using = _used(chain)
            note = _read(chain)
            if using is not None and note is None:
                note = _start_keeper(chain, cpus * chain.at_once)
    except OSError:  # a full disk, a folder of somebody else
        return None
    if using is None:
        return None
    if note is None or not note.fits(cpus * chain.at_once):
        using.close()
        return None
    return SharedRay(note, using)


def _used(chain: Chain) -> IO[str] | None:
    """The lock of somebody who uses the Ray; None where the keeper is ending it."""
    file = chain.users.open("a+")
    if _locked(file, fcntl.LOCK_SH):
        return file
    file.close()
    return None


def _locked(file: IO[str], how: int) -> bool:
    """Take a lock if it is free; it is let go with the file, or the process."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(chain: Chain) -> Note | None:
    """What the chain's keeper noted; None where there is none, or it was killed."""
    try:
        note = Note(**read_json(chain.note))
    except (OSError, ValueError, TypeError):
        return None
    with chain.kept.open("a+") as kept:
        return None if _locked(kept, fcntl.LOCK_SH) else note


def _start_keeper(chain: Chain, cpus: int) -> Note | None:
    command = [sys.executable, "-m", "pipelines.execution.shared_ray", str(chain.root), str(chain.process), str(cpus)]
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}  # it serves others too
    with chain.note.with_suffix(".log").open("w") as log:
        keeper = subprocess.Popen(  # a session of its own: what ends the stage by its terminal is not meant for it
            command,
            cwd=chain.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    while keeper.poll() is None and time.monotonic() < deadline:
        note = _read(chain)
        if note is not None:
            return note
        time.sleep(0.05)
    return None


# ------------------------------------------------------------------------------------------------- the keeper


def keep(chain: Chain, cpus: int) -> None:
    """Hold a Ray of so many CPUs until the chain's process is gone and nobody uses it."""
    import psutil

    _tidy(chain)
    try:
        owner = psutil.Process(chain.process)
    except psutil.NoSuchProcess:
        return
    prepare_environment()
    with OwnRay(cpus) as ray, chain.users.open("a+") as users, chain.kept.open("a+") as kept:
        if not _locked(kept, fcntl.LOCK_EX):
            return
        devices, python = _like_this_process()
        note = Note(ray.address, ray.token, str(ray.logs), cpus, devices, python)
        write_whole(chain.note, json.dumps(asdict(note)))
        try:
            while _lives(owner) or not _locked(users, fcntl.LOCK_EX):  # once it has that, no stage gets in
                time.sleep(_POLL_SECONDS)
        finally:
            _forget(chain)


def _lives(process: object) -> bool:
    import psutil

    assert isinstance(process, psutil.Process)
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _tidy(chain: Chain) -> None:
    """Remove the notes of chains that are gone; one whose keeper was killed could not do it itself."""
    import psutil

    for note in (chain.root / FOLDER).glob("*.json"):
        if note.stem.isdigit() and int(note.stem) != chain.process and not psutil.pid_exists(int(note.stem)):
            _forget(Chain(chain.root, int(note.stem)))


def _forget(chain: Chain) -> None:
    for suffix in (".json", ".users", ".kept", ".lock", ".log"):
        chain.note.with_suffix(suffix).unlink(missing_ok=True)


if __name__ == "__main__":
    root, process, cpus = sys.argv[1:]
    keep(Chain(Path(root), int(process)), int(cpus))
