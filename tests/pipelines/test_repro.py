"""`ayf repro` on chains of small shell commands: what DVC notes, failures, stops, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipelines.execution.repro import Plan, _Runner

pytestmark = pytest.mark.slow

LOG = 'echo "begin NAME $(date +%s.%N)" >> log; {work}; echo "end NAME $(date +%s.%N)" >> log'


class Project:
    """A DVC project of shell commands: of each stage its inputs (outputs of others) and what it does meanwhile."""

    def __init__(self, root: Path, stages: Mapping[str, tuple[list[str], str]]) -> None:
        self.root = root
        self._started: list[subprocess.Popen[str]] = []
        root.mkdir()
        (root / "source").write_text("1")
        declared = {}
        for name, (needs, work) in stages.items():
            command = LOG.format(work=work).replace("NAME", name) + f" && cat source > {name}.out"
            deps = [f"{other}.out" for other in needs] or ["source"]
            declared[name] = {"cmd": command, "deps": deps, "outs": [f"{name}.out"]}
        (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": declared}))
        (root / ".dvcignore").write_text("/runs/\n")
        self.run("dvc", "init", "--no-scm", "-q")

    def start(self, tool: str, *words: str, **environment: str) -> subprocess.Popen[str]:
        command = {"ayf": "pipelines.commands.main", "dvc": "dvc"}[tool]
        process = subprocess.Popen(
            [sys.executable, "-m", command, *words],
            cwd=self.root,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, tool: str, *words: str, status: int = 0) -> str:
        process = self.start(tool, *words)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == status, said
        return said

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            assert process.stdout is not None
            process.stdout.close()  # a stage that is left may hold the other end
            process.wait()

    def log(self) -> list[list[str]]:
        path = self.root / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def times(self, event: str) -> dict[str, float]:
        return {name: float(when) for what, name, when in self.log() if what == event}

    def wait(self, ready: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def locked(self) -> dict:
        return yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]

    def at_rest(self) -> bool:
        """Whether DVC holds nothing, and no stop file is left."""
        noted = json.loads((self.root / ".dvc/tmp/rwlock").read_text())
        return not any(noted.get("write", {})) and not list(self.root.glob("runs/stop-*"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Project]]:
    made: list[Project] = []

    def project(stages: Mapping[str, tuple[list[str], str]]) -> Project:
        made.append(Project(tmp_path / f"project-{len(made)}", stages))
        return made[-1]

    yield project
    for each in made:
        each.close()


PAIR: dict[str, tuple[list[str], str]] = {
    "a": ([], "sleep 2"),
    "b": ([], "sleep 2"),
    "c": (["a", "b"], "true"),
}


def test_independent_stages_run_at_once_and_what_needs_them_afterwards(make: Callable[..., Project]) -> None:
    project = make(PAIR)
    said = project.run("ayf", "repro", "--jobs", "2")
    begun, ended = project.times("begin"), project.times("end")
    assert max(begun["a"], begun["b"]) < min(ended["a"], ended["b"])
    assert begun["c"] >= max(ended["a"], ended["b"])
    assert said.splitlines()[-1] == "3 stages ran."
    assert "up to date" in project.run("dvc", "status")
    again = project.run("ayf", "repro", "--jobs", "2")
    assert again.splitlines() == [
        *(f"Stage '{name}' didn't change, skipping" for name in "abc"),
        "Data and pipelines are up to date.",
    ]
    assert project.at_rest()


def test_one_at_once_and_only_what_a_target_needs(make: Callable[..., Project]) -> None:
    project = make(PAIR)
    project.run("ayf", "repro", "a", "b", "--jobs", "1")
    assert [what for what, _, _ in project.log()] == ["begin", "end"] * 2
    assert set(project.locked()) == {"a", "b"}
    assert project.run("ayf", "repro", "a", "--force").splitlines()[-1] == "1 stages ran."
    assert "error:" in project.run("ayf", "repro", "nowhere", status=1)


def test_many_short_stages_leave_the_lock_file_that_dvc_alone_would(make: Callable[..., Project]) -> None:
    layers = {f"first{i}": ([], "true") for i in range(12)}
    layers |= {f"then{i}": ([f"first{i}", f"first{(i + 1) % 12}"], "true") for i in range(12)}
    chain = {**layers, "last": ([f"then{i}" for i in range(12)], "true")}
    ours, theirs = make(chain), make(chain)
    ours.run("ayf", "repro", "--jobs", "6")
    theirs.run("dvc", "repro")
    assert ours.locked() == theirs.locked()
    assert len(ours.locked()) == 25
    assert "up to date" in ours.run("dvc", "status")
    assert ours.at_rest()


def test_a_failure_lets_others_end_and_begins_nothing_new(make: Callable[..., Project]) -> None:
    project = make(
        {"bad": ([], "sleep 1; exit 3"), "good": ([], "sleep 4"), "more": (["good"], "true"), "last": (["bad"], "true")}
    )
    said = project.run("ayf", "repro", "--jobs", "2", status=1)
    assert said.splitlines()[-1] == "error: bad failed; not run: last, more"
    assert set(project.locked()) == {"good"}
    assert {name for _, name, _ in project.log()} == {"bad", "good"}
    said = project.run("ayf", "repro", "--jobs", "2", status=1)
    assert "Stage 'good' didn't change, skipping" in said


TRAINS = 'while [ ! -e "$AYF_STOP_FILE" ]; do sleep .1; done; echo checkpoint >> kept; exit 75'


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_stages_with_their_checkpoint(make: Callable[..., Project], signum: signal.Signals) -> None:
    project = make({"a": ([], TRAINS), "b": ([], TRAINS), "c": (["a"], "true")})
    process = project.start("ayf", "repro", "--jobs", "2")
    project.wait(lambda: len(project.times("begin")) == 2)
    os.killpg(process.pid, signum)  # as a terminal does
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, said
    assert said.splitlines()[-1] == "stopped: `ayf repro` goes on from here"
    assert (project.root / "kept").read_text().split() == ["checkpoint"] * 2
    assert project.at_rest()


def test_a_stop_file_of_whoever_runs_it_is_heeded(make: Callable[..., Project], tmp_path: Path) -> None:
    project = make({"a": ([], TRAINS)})
    process = project.start("ayf", "repro", AYF_STOP_FILE=str(tmp_path / "stop"))
    project.wait(lambda: project.times("begin"))
    (tmp_path / "stop").touch()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said


def test_a_second_ctrl_c_ends_all_at_once(make: Callable[..., Project]) -> None:
    project = make({"a": ([], "sleep 300"), "b": ([], "sleep 300")})
    process = project.start("ayf", "repro", "--jobs", "2")
    project.wait(lambda: len(project.times("begin")) == 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130


def test_killed_at_any_instant_the_next_one_goes_on(make: Callable[..., Project]) -> None:
    """With it end DVC's processes; what they left in the locks is in nobody's way."""
    project = make({f"s{i}": ([f"s{i - 2}"] if i > 1 else [], "sleep .2") for i in range(12)})
    for seconds in (2.5, 3.5, 4.5):
        process = project.start("ayf", "repro", "--jobs", "2")
        time.sleep(seconds)
        process.kill()
        process.wait()
    project.run("ayf", "repro", "--jobs", "2")
    assert set(project.locked()) == {f"s{i}" for i in range(12)}
    assert "up to date" in project.run("dvc", "status")


def test_one_more_stage_begins_only_where_there_is_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("lonely", "first", "second", "third")
    plan = Plan(dict.fromkeys(stages), {"lonely": set(), "first": set(), "second": {"first"}, "third": {"second"}})
    room = [False]
    monkeypatch.setattr("pipelines.execution.repro.has_room", lambda: room[0])
    stop = SimpleNamespace(asked=0)
    runner = _Runner(Path(), None, 4, True, lambda line: None, stop)  # type: ignore[arg-type]
    monkeypatch.setattr(runner, "_begin", lambda name: name)
    runner._start(plan)
    assert list(runner.running) == ["first"]  # what most others wait for
    runner._start(plan)
    assert list(runner.running) == ["first"]
    room[0] = True
    runner._start(plan)
    assert list(runner.running) == ["first", "lonely"]
