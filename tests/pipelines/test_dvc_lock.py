"""DVC's two lock files, as DVC itself writes and reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from dvc.lock import make_lock
from dvc.rwlock import SCHEMA

from pipelines.project import dvc_lock

SAY = """
import os
from pathlib import Path

from pipelines.project import dvc_lock

print(os.getppid(), dvc_lock.writers(Path()))
Path("out").touch()
"""


def dvc(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_dvc_that_runs_a_stage_is_the_writer(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "say.py").write_text(SAY)
    (tmp_path / "dvc.yaml").write_text("stages: {say: {cmd: exec python say.py, deps: [say.py], outs: [out]}}\n")
    dvc(tmp_path, "init", "--no-scm", "-q")
    done = dvc(tmp_path, "repro", PYTHONPATH=str(repository))
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "{" in line]
    parent, writers = line.split(" ", 1)
    assert writers == f"{{{parent}}}"
    assert dvc_lock.writers(tmp_path) == set()  # it has ended


def lock_of(root: Path, text: str) -> Path:
    lock = root / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text(text)
    return lock


def test_only_the_named_processes_are_forgotten(tmp_path: Path) -> None:
    ours, theirs = {"pid": 11, "cmd": "dvc repro"}, {"pid": 12, "cmd": "dvc repro"}
    held = {"write": {"/a": ours, "/b": theirs}, "read": {"/c": [ours, theirs], "/d": [ours]}}
    lock = lock_of(tmp_path, json.dumps(SCHEMA(held)))
    dvc_lock.mend(tmp_path, {11})
    assert SCHEMA(json.loads(lock.read_text())) == {"write": {"/b": theirs}, "read": {"/c": [theirs], "/d": []}}
    assert dvc_lock.writers(tmp_path) == {12}


def test_a_process_that_has_ended_and_was_not_asked_how_is_forgotten(tmp_path: Path) -> None:
    ended, alive = (subprocess.Popen(["sleep", seconds]) for seconds in ("0", "60"))
    try:
        while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        noted = {"write": {f"/{each.pid}": {"pid": each.pid, "cmd": "dvc"} for each in (ended, alive)}}
        lock_of(tmp_path, json.dumps(SCHEMA(noted)))
        dvc_lock.mend(tmp_path)
        assert dvc_lock.writers(tmp_path) == {alive.pid}
    finally:
        alive.kill()
        for each in (ended, alive):
            each.wait()


def test_without_a_lock_there_is_nothing_to_mend(tmp_path: Path) -> None:
    dvc_lock.mend(tmp_path, {11})
    assert dvc_lock.writers(tmp_path) == set()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["", '{"write": {"/a": '])
def test_a_lock_that_was_cut_off_no_longer_stops_dvc(tmp_path: Path, repository: Path, cut: str) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {make: {cmd: echo > out, outs: [out]}}\n")
    dvc(tmp_path, "init", "--no-scm", "-q")
    lock = tmp_path / ".dvc/tmp/rwlock"
    lock.write_text(cut)
    assert dvc_lock.writers(tmp_path) == set()
    assert "corrupted" in dvc(tmp_path, "repro").stderr  # what DVC itself does about it
    mended = subprocess.run(
        [sys.executable, "-m", "pipelines.project.dvc_lock"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert mended.returncode == 0
    assert "cut off" in mended.stderr
    done = dvc(tmp_path, "repro")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").exists()
    assert "cut off" not in done.stderr


def test_a_lock_that_a_dvc_is_changing_is_left_to_it(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, "")
    with make_lock(str(lock.with_name("rwlock.lock"))):
        dvc_lock.mend(tmp_path)
        assert lock.exists()
    dvc_lock.mend(tmp_path)
    assert not lock.exists()


def test_another_form_is_left_alone(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, '{"write": 3}')
    dvc_lock.mend(tmp_path, {11})
    assert lock.read_text() == '{"write": 3}'


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 60])
def test_a_dvc_lock_that_was_cut_off_no_longer_stops_dvc(tmp_path: Path, kept: int) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {make: {cmd: echo > out, outs: [out]}}\n")
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "repro")
    lock = tmp_path / "dvc.lock"
    whole = lock.read_text()
    dvc_lock.mend(tmp_path)
    assert lock.read_text() == whole
    assert set(dvc_lock.committed(tmp_path)) == {"make"}
    lock.write_text(whole[:kept] + "\n    - pa")
    assert dvc(tmp_path, "repro").returncode != 0  # what DVC itself does about it
    dvc_lock.mend(tmp_path)
    assert (tmp_path / "dvc.lock.cut-off").exists()
    done = dvc(tmp_path, "repro")
    assert done.returncode == 0, done.stderr
    assert lock.read_text() == whole


def test_a_dvc_lock_that_another_dvc_is_writing_is_read_again(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    lock.write_text("")  # as DVC leaves it for the time of writing
    writer = threading.Timer(0.4, lock.write_text, ("schema: '2.0'\nstages: {make: {cmd: make}}\n",))
    writer.start()
    assert dvc_lock.committed(tmp_path) == {"make": {"cmd": "make"}}
    writer.join()
