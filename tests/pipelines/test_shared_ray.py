"""Who shares the Ray of a chain, without starting one. With real processes: tests/reliability/test_shared_ray.py."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipelines.execution import shared_ray
from pipelines.execution.shared_ray import CHAIN, Chain, Note

NOTE = Note("127.0.0.1:1", "secret", "/tmp/nowhere/session/logs", 2, None, sys.executable)


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Chain(tmp_path, os.getpid())


def keep(chain: Chain, note: Note, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a keeper there that tells `note`; the CPUs of each that is started."""
    started = []

    def start(of: Chain, cpus: int) -> Note:
        started.append(cpus)
        of.note.write_text(json.dumps(asdict(note)))
        return note

    monkeypatch.setattr(shared_ray, "_start_keeper", start)
    return started


def used(chain: Chain, cpus: int) -> bool:
    """Whether a stage that needs so many CPUs gets the chain's Ray."""
    found = shared_ray.shared_ray(chain, cpus)
    if found is not None:
        found._using.close()
    return found is not None


def test_a_stage_knows_its_chain_by_the_environment(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHAIN, "")
    assert Chain.of_environment(chain.root) is None
    replace(chain, at_once=3).announce()
    assert Chain.of_environment(chain.root) == replace(chain, at_once=3)


def test_the_first_stage_starts_it_with_room_for_all_at_once(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    started = keep(chain, NOTE, monkeypatch)
    assert used(replace(chain, at_once=2), 1)
    assert started == [2]
    assert stat.S_IMODE(chain.note.parent.stat().st_mode) == 0o700  # the note holds the token


def test_the_next_one_finds_it_unless_its_keeper_was_killed(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    started = keep(chain, NOTE, monkeypatch)
    assert used(chain, 2)
    with chain.kept.open("a+") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        assert used(chain, 2)
    assert len(started) == 1
    assert used(chain, 2)
    assert len(started) == 2


@pytest.mark.parametrize(
    "other", [replace(NOTE, cpus=1), replace(NOTE, devices="0"), replace(NOTE, python="/usr/bin/python3")]
)
def test_a_ray_of_other_settings_is_not_used(chain: Chain, other: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(chain, other, monkeypatch)
    assert not used(chain, 2)


def test_one_that_is_being_ended_is_not_used(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    started = keep(chain, NOTE, monkeypatch)
    chain.users.parent.mkdir(parents=True)
    with chain.users.open("a+") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        assert not used(chain, 2)
    assert not started


def test_a_keeper_of_a_chain_that_is_gone_starts_nothing_and_tidies_up(chain: Chain) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = Chain(chain.root, gone.pid)
    left.note.parent.mkdir(parents=True)
    left.note.write_text("{}")
    shared_ray.keep(left, 1)
    shared_ray.keep(Chain(chain.root, 2**22 + 1), 1)
    assert not list(chain.note.parent.iterdir())
