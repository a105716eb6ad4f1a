"""Submissions without a Slurm: what would run, what the terminal shows, how the tasks of a job meet."""

from __future__ import annotations

import io
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ayf_core.errors import AyfError
from pipelines.execution.attempt import ATTEMPT, Attempt, reported_to_job
from pipelines.execution.progress import TrainingProgress
from pipelines.settings.runtime import RuntimeConfig, load_runtime, with_runtime_values
from pipelines.slurm import job, submission
from pipelines.slurm import scheduler as slurm
from pipelines.slurm.following import LogTail, ProgressMirror


def test_what_a_target_runs_and_how_it_goes_on(repository: Path):
    first, again = submission.commands(repository, ["repro"])
    assert first == again
    assert first[1:] == ["-m", "dvc", "--wait-for-lock", "repro"]
    assert submission.commands(repository, ["distill@emd"])[0][-2:] == ["repro", "distill@emd"]
    first, again = submission.commands(repository, ["sweep", "distill"])
    assert first[-3:] == ["sweep", "distill", "--new"]
    assert again[-4:] == ["sweep", "distill", "--resume", "--new"]


@pytest.mark.parametrize("target", [[], ["rerpo"], ["sweep"], ["sweep", "nothing"], ["repro", "twice"]])
def test_an_unknown_target_is_refused(repository: Path, target: list[str]):
    with pytest.raises(AyfError, match=r"cannot submit|no sweep nothing"):
        submission.commands(repository, target)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:h100:8(S:0-1)", 8),
        ("gpu:a100:4,gpu:v100:2", 6),
        ("shard:64,gpu:h100:8(S:0-1),nic:2", 8),
        ("gpu_mem:80", 0),
    ],
)
def test_gpus_are_counted_in_what_slurm_prints(gres: str, gpus: int):
    assert slurm._gpus(gres) == gpus


def test_settings_of_the_runtime_on_the_command_line_are_told_from_those_of_the_experiment(repository: Path):
    runtime, others = with_runtime_values(
        load_runtime(repository, "slurm"), {"slurm.nodes": "4", "workers": "8", "preset": "smoke", "seed": "3"}
    )
    assert (runtime.slurm.nodes, runtime.workers) == (4, 8)
    assert others == {"preset": "smoke", "seed": "3"}


@pytest.mark.parametrize(
    ("word", "value", "says"),
    [("slurm.nodes", "0", "slurm.nodes = 0"), ("workers", "some", "workers"), ("device", "tpu", "device = tpu")],
)
def test_wrong_settings_of_the_runtime_are_named(word: str, value: str, says: str):
    with pytest.raises(AyfError, match=says):
        with_runtime_values(RuntimeConfig(), {word: value})


# ------------------------------------------------------------------------------------------------ rendezvous


def test_the_token_is_readable_by_its_owner_alone(tmp_path: Path):
    attempt = Attempt(tmp_path)
    attempt.make_token()
    assert stat.S_IMODE(attempt.token_file.stat().st_mode) == 0o600
    assert len(attempt.token_file.read_text()) == 64


def test_tasks_that_come_are_waited_for(tmp_path: Path):
    attempt = Attempt(tmp_path / "attempt-0-0")
    attempt.come(0, "here")
    later = threading.Timer(0.3, attempt.come, (1, "there"))
    later.start()
    assert attempt.wait_for_hosts(2, seconds=20) == {0: "here", 1: "there"}
    later.join()


def test_tasks_that_do_not_come_are_counted(tmp_path: Path):
    attempt = Attempt(tmp_path / "attempt-0-0")
    attempt.come(0, "here")
    attempt.come(2, "there")
    with pytest.raises(AyfError, match=r"4 nodes were asked for, 2 came within 0 s \(missing: task 1, 3\)"):
        attempt.wait_for_hosts(4, seconds=0.1)


def test_of_an_elastic_job_those_that_came_are_enough(tmp_path: Path):
    attempt = Attempt(tmp_path / "attempt-0-1")
    attempt.come(0, "here")
    assert attempt.wait_for_hosts(4, seconds=0.1, fewest=1) == {0: "here"}


def test_a_task_0_that_is_gone_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.execution.attempt._HEARTBEAT_SECONDS", 0.05)
    attempt = Attempt(tmp_path)
    heartbeat = attempt.heartbeat()
    attempt.start_heartbeat()
    for _ in range(3):  # it is heard again and again
        reached(lambda: heartbeat.silent_seconds() > 0.02)
        reached(lambda: heartbeat.silent_seconds() < 0.02)
    attempt.end("done")  # the thread ends, as it would with its process
    reached(lambda: heartbeat.silent_seconds() > 1)


def test_a_task_that_was_suspended_does_not_take_task_0_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    monkeypatch.setattr("pipelines.execution.attempt.time.monotonic", lambda: now)
    attempt = Attempt(tmp_path)
    (tmp_path / "heartbeat").touch()
    heartbeat = attempt.heartbeat()
    heartbeat.silent_seconds()
    now += 20
    assert heartbeat.silent_seconds() == 20
    now += 500  # nobody looked
    assert heartbeat.silent_seconds() == 20
    now += 20
    assert heartbeat.silent_seconds() == 40


def reached(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_job_learns_what_became_of_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attempt = Attempt(tmp_path)
    monkeypatch.setenv(ATTEMPT, str(tmp_path))
    with reported_to_job():
        assert attempt.has_unfinished_stage()
    assert not attempt.has_unfinished_stage()
    with pytest.raises(AyfError), reported_to_job():
        raise AyfError("the data are NaN")
    assert attempt.failure_file.read_text() == "the data are NaN"
    assert not attempt.has_unfinished_stage()


def test_nothing_that_lives_is_pickled(tmp_path: Path):
    import cloudpickle

    made = job.ClusterJob(tmp_path, tmp_path, ["a"], ["b"], tmp_path, 2, 1, 0, 300, 120)
    made._driver = object()  # type: ignore[assignment]
    again = cloudpickle.loads(cloudpickle.dumps(made.resubmitted()))
    assert not hasattr(again, "_driver")
    assert again.command == ["a"]


# ------------------------------------------------------------------------------------------------- following


def test_a_log_is_shown_in_whole_lines(tmp_path: Path):
    path = tmp_path / "log"
    tail = LogTail(path)
    assert tail.new() == ""
    path.write_text("one\ntw")
    assert tail.new() == "one\n"
    with path.open("a") as file:
        file.write("o\n")
    assert tail.new() == "two\n"


def test_the_terminal_shows_the_bar_of_a_training_that_runs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events = tmp_path / "progress.jsonl"
    monkeypatch.setenv("AYF_PROGRESS_FILE", str(events))
    with TrainingProgress("train_teacher", Console(file=io.StringIO())) as elsewhere:
        elsewhere.note("starting the workers")
        for step in (10, 20):
            elsewhere.update([{"step": step, "total": 40, "time": float(step), "metrics": {"loss": 0.5}}])
    monkeypatch.delenv("AYF_PROGRESS_FILE")
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    whole = events.read_text()
    with ProgressMirror(events, screen) as mirror:
        events.write_text("".join(whole.splitlines(keepends=True)[:-1]))  # it has not ended yet
        mirror.update()
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "train_teacher" in shown
    assert "20/40" in shown
    assert "loss 0.5" in shown


def test_jobs_are_listed_from_their_folders_and_the_newest_is_found(tmp_path: Path):
    for number, day in ((7, "20260101-000000-repro"), (9, "20260102-000000-repro")):
        place = tmp_path / "runs/jobs" / day
        place.mkdir(parents=True)
        about = {"job": str(number), "what": "repro", "submitted": "2026-01-01T00:00:00", "nodes": 2}
        (place / "job.json").write_text(json.dumps(about))
    assert [each.job for each in submission.jobs(tmp_path)] == ["7", "9"]
    assert submission.find(tmp_path, None).job == "9"
    assert submission.find(tmp_path, "7").log.name == "7_0_log.out"
    with pytest.raises(AyfError, match="no job 8 of this project: there are 7, 9"):
        submission.find(tmp_path, "8")


def followed(states: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What following a job returns that Slurm tells these states of, one after another; "" is no answer."""
    left = iter(states)

    def state(self: submission.Submitted) -> str:
        told = next(left)
        if not told:
            raise AyfError("Slurm refused `squeue`: Socket timed out")
        return told

    monkeypatch.setattr(submission.Submitted, "state", state)
    monkeypatch.setattr(submission, "_ASK_SECONDS", 0.0)
    job = submission.Submitted(folder, "7", "repro", "2026-01-01T00:00:00", 2)
    return submission.follow(job, poll_seconds=0.001)


def test_following_survives_a_slurm_that_does_not_answer_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert followed(["PENDING", "", "", "RUNNING", "", "COMPLETED"], tmp_path, monkeypatch) == "COMPLETED"
    monkeypatch.setattr(submission, "ANSWER_MINUTES", 0)
    with pytest.raises(AyfError, match="Socket timed out"):
        followed(["RUNNING", "", "RUNNING"], tmp_path, monkeypatch)


def test_a_job_that_is_queued_again_is_followed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert followed(["RUNNING", "PREEMPTED", "PENDING", "COMPLETED"], tmp_path, monkeypatch) == "COMPLETED"
    assert followed(["RUNNING", "PREEMPTED", "PREEMPTED"], tmp_path, monkeypatch) == "PREEMPTED"
    assert followed(["RUNNING", "UNKNOWN", "UNKNOWN"], tmp_path, monkeypatch) == "UNKNOWN"


def test_without_submissions_the_line_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(AyfError, match="ayf submit repro runtime=slurm"):
        submission.find(tmp_path, None)


def test_a_job_takes_no_allocation_or_token_of_the_submitter_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("SLURM_JOB_ID", "RAY_AUTH_TOKEN", "SRUN_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    seen: dict[str, str] = {}

    class Executor:
        def submit(self, given: object) -> object:
            seen.update(os.environ)
            return type("Job", (), {"job_id": 5})()

    assert submission._handed_to_slurm(Executor(), None) == "5"  # type: ignore[arg-type]
    assert not {"SLURM_JOB_ID", "RAY_AUTH_TOKEN", "SRUN_CPUS_PER_TASK"} & seen.keys()
    assert seen["SLURM_CONF"] == "/etc/slurm/slurm.conf"
    assert os.environ["SLURM_JOB_ID"] == "1"
