"""One Ray for the stages of a chain: whatever is killed, it ends with the chain and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.reliability.lab import DISTURBED_AT, STAGE, Lab

pytestmark = [pytest.mark.ray, pytest.mark.slow]

OTHER = "train_weak_teacher"


@pytest.fixture
def lab(prepared: Path, tmp_path: Path) -> Iterator[Lab]:
    with closing(Lab.copy(prepared, tmp_path / "project", mode="ray")) as made:
        yield made


class Chain:
    """The Ray of a chain, seen from outside.

    Args:
        owner: the process that the stages' Ray belongs to.
    """

    def __init__(self, lab: Lab, owner: subprocess.Popen[bytes]) -> None:
        self._note = lab.root / f"runs/ray/{owner.pid}.json"
        lab.wait(self._note.exists, "a Ray", owner)
        note = json.loads(self._note.read_text())
        self.folder = Path(note["logs"]).parents[1]
        self.keeper = psutil.Process(int(self.folder.name.split("-")[2]))
        self._lab = lab

    def drivers(self) -> int:
        """How many processes have been connected as drivers."""
        return len(list(self.folder.glob("session_latest/logs/python-core-driver-*.log")))

    def processes(self) -> list[psutil.Process]:
        """Ray's own, the keeper and the workers: all that have its folder in their command or are below those."""
        named = [p for p in psutil.process_iter() if str(self.folder) in _command(p)]
        return [*named, *(child for p in named for child in _below(p))]

    def wait_for_its_end(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.keeper.is_running() or self.processes():
            assert time.monotonic() < deadline, [_command(p) for p in self.processes()]
            time.sleep(0.1)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def left_behind(lab: Lab, chain: Chain) -> list[Path]:
    return [*lab.root.glob("runs/ray/*"), *chain.folder.parent.glob(chain.folder.name)]


def test_all_stages_of_a_chain_use_one_ray_that_ends_with_it(
    prepared: Path, lab: Lab, tmp_path: Path, undisturbed: str
) -> None:
    """Two chains at once, in two folders: they do not meet."""
    with closing(Lab.copy(prepared, tmp_path / "other", mode="ray")) as other:
        labs = (lab, other)
        commands = (("dvc", "repro"), ("ayf", "repro", "--jobs", "2"))
        processes = [each.start(*command, STAGE, OTHER) for each, command in zip(labs, commands, strict=True)]
        chains = [Chain(each, process) for each, process in zip(labs, processes, strict=True)]
        assert chains[0].folder != chains[1].folder
        drivers = [0, 0]
        while any(process.poll() is None for process in processes):
            drivers = [max(most, chain.drivers()) for most, chain in zip(drivers, chains, strict=True)]
            time.sleep(0.1)
        assert drivers == [3, 3]  # the keeper and two stages
        for each, process, chain in zip(labs, processes, chains, strict=True):
            each.finish(process)
            chain.wait_for_its_end()
            assert not left_behind(each, chain)
            assert each.model() == undisturbed


def of_stage(lab: Lab, process: subprocess.Popen[bytes], chain: Chain) -> psutil.Process:
    return next(p for p in lab.processes(f"pipelines {STAGE}", process) if "-c" not in p.cmdline()[1:3])


VICTIMS: dict[str, tuple[tuple[str, ...], Callable[..., psutil.Process]]] = {
    "dvc": (("dvc", "repro"), lambda lab, process, chain: psutil.Process(process.pid)),
    "the stage": (("dvc", "repro"), of_stage),
    "the keeper of Ray": (("dvc", "repro"), lambda lab, process, chain: chain.keeper),
    "ayf": (("ayf", "repro"), lambda lab, process, chain: psutil.Process(process.pid)),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_whatever_is_killed_the_ray_ends_and_the_same_command_goes_on(lab: Lab, undisturbed: str, victim: str) -> None:
    command, find = VICTIMS[victim]
    process = lab.start(*command, STAGE)
    chain = Chain(lab, process)
    lab.wait_for_step(DISTURBED_AT, process)
    find(lab, process, chain).send_signal(signal.SIGKILL)
    assert process.wait(timeout=180) != 0
    chain.wait_for_its_end()
    lab.finish(lab.start(*command, STAGE))
    assert lab.model() == undisturbed
    deadline = time.monotonic() + 30
    while left_behind(lab, chain):
        assert time.monotonic() < deadline, left_behind(lab, chain)
        time.sleep(0.1)


def test_ctrl_c_has_the_trainings_of_ayf_repro_take_their_checkpoint(lab: Lab, undisturbed: str) -> None:
    process = lab.start("ayf", "repro", STAGE, OTHER)
    chain = Chain(lab, process)
    lab.wait_for_step(DISTURBED_AT, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(timeout=120) == 130, lab.said(process)
    assert f"{STAGE}: stopped at step {lab.newest_step()} with a checkpoint" in lab.said(process)
    chain.wait_for_its_end()
    assert not left_behind(lab, chain)
    lab.finish(lab.start("ayf", "repro", STAGE))
    assert lab.model() == undisturbed
