"""Faults of a cluster, on a real Slurm of two nodes: each costs the steps since the last checkpoint and nothing else.

One trainer worker runs on each node. A job endures several faults, one after another; in the end it is held against a
job that nothing happened to, byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ayf_core.files import found_below
from tests.cluster.cluster_project import CHECKPOINT_EVERY, STEPS, Project
from tests.cluster.slurm_cluster import kill

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

FIRST, APART = 150, 100
"""Steps of the first fault and between two: each comes in the middle between two checkpoints, and all come early: a
fast training reaches its end while `ayf cancel` is being imported."""


def nothing(project: Project, job: str) -> str:
    """Nobody does anything about a fault."""
    return job


@dataclass(frozen=True)
class Fault:
    """What is done to a job that trains.

    Attributes:
        then: what goes on, in words for the table.
        aftermath: what a person does about it, given the job; the job that goes on.
        most_lost: steps; a fault in the middle of writing a checkpoint costs two intervals.
    """

    name: str
    then: str
    strike: Callable[[Project, str], None]
    aftermath: Callable[[Project, str], str] = nothing
    most_lost: int = 2 * CHECKPOINT_EVERY


def endured(project: Project, faults: Iterable[Fault], *words: str) -> Iterator[tuple[Fault, int, float]]:
    """Submit the teacher, strike it again and again, see it to its end: fault, steps lost, seconds until it went on."""
    job = project.submit("train_teacher", "runtime=slurm", *words)
    for number, fault in enumerate(faults):
        project.wait_for_step(FIRST + number * APART, job)
        story = Story(project)
        fault.strike(project, job)
        began = time.monotonic()
        job = fault.aftermath(project, job)
        lost = story.steps_lost_when_it_goes_on(job)
        assert 0 <= lost <= fault.most_lost, fault.name
        yield fault, lost, time.monotonic() - began
    assert project.wait_for_end(job) == "COMPLETED", project.log(job)[-4000:]
    assert project.step() == STEPS


class Story:
    """The metrics file of a training: a resumed one cuts what was noted after its checkpoint, in a new file."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._path = next(project.root.glob("runs/train_teacher/*/training/metrics.jsonl"))
        self._inode = self._path.stat().st_ino

    def steps_lost_when_it_goes_on(self, job: str, seconds: float = 300) -> int:
        """Wait until training goes on: the steps noted before that are trained again."""
        deadline = time.monotonic() + seconds
        reached = self._project.step()
        while time.monotonic() < deadline:
            if self._path.stat().st_ino != self._inode:
                newest = max(int(place.name[5:]) for place in found_below(self._path.parent, "step_????????"))
                return max(0, reached - newest)  # a stop's checkpoint may be of a later step than the last noted
            reached = max(reached, self._project.step())
            assert self._project.slurm.state(job) not in {"FAILED", "CANCELLED"}, self._project.log(job)[-4000:]
            time.sleep(0.05)
        assert reached < STEPS, "the training was over before the fault came"
        raise AssertionError(f"job {job} did not go on from step {reached}:\n{self._project.log(job)[-4000:]}")


def test_undisturbed_job_finishes_and_the_laptop_has_nothing_to_do(undisturbed: Project):
    again = undisturbed.run("dvc", "repro", "train_teacher", AYF_RUNTIME="inline")
    assert again.returncode == 0, again.stderr
    assert "didn't change, skipping" in again.stdout
    assert "Running stage" not in again.stdout


# ----------------------------------------------------------------------------- faults within a job that goes on


def processes_die(node: str, words: str) -> Callable[[Project, str], None]:
    def strike(project: Project, job: str) -> None:
        found = project.slurm.processes(node, words)
        assert found, f"no {words} on {node}"
        kill(found)

    return strike


def ray_dies(node: str) -> Callable[[Project, str], None]:
    def strike(project: Project, job: str) -> None:
        (start,) = [p for p in project.slurm.processes(node, "ray.scripts.scripts") if "--block" in p.cmdline()]
        kill([*start.children(recursive=True), start])

    return strike


WITHIN = [
    Fault(
        "SIGKILL of a trainer worker",
        "Ray Train starts the workers anew",
        processes_die("node2", "RayTrainWorker"),
    ),
    Fault("SIGKILL of a Ray worker node", "its task starts it again", ray_dies("node2")),
    Fault("SIGKILL of the head of Ray", "a new Ray within the job", ray_dies("node1")),
    Fault(
        "SIGKILL of the driver in a job",
        "driver and Ray start again",
        processes_die("node1", "pipelines train_teacher"),
    ),
    Fault(
        "SIGKILL of the dvc in a job",
        "driver and Ray start again",
        processes_die("node1", "-m dvc --wait-for-lock repro"),
    ),
]


def test_a_job_goes_on_whatever_of_it_is_killed(project: Project, undisturbed: Project, told):
    rows = list(endured(project, WITHIN))
    assert project.hash() == undisturbed.hash()
    for fault, lost, seconds in rows:
        told(fault.name, lost=lost, seconds=seconds, same=True, then=fault.then)


# ----------------------------------------------------------------------------------- faults that end a job


def comes_higher(project: Project, job: str) -> None:
    project.slurm.run("sbatch", "-p", "high", "-N2", "--output=/dev/null", "--wrap", "srun sleep 3")


def has_stopped(project: Project, job: str) -> str:
    project.slurm.wait_for(job, {"PENDING", "COMPLETING", "REQUEUED"}, 120)
    assert "stopping with a checkpoint" in project.log(job)
    return job


def is_cancelled(project: Project, job: str) -> None:
    done = project.run("ayf", "cancel", job)
    assert done.returncode == 0, done.stderr
    assert project.wait_for_end(job) == "CANCELLED"
    assert not list(project.root.glob("runs/jobs/*/attempt-*-1")), "a cancelled job began once more"


def submits_again(project: Project, job: str) -> str:
    return project.submit("train_teacher", "runtime=slurm")


def is_lost(node: str) -> Callable[[Project, str], None]:
    return lambda project, job: project.slurm.kill_node(node)


def is_repaired(node: str) -> Callable[[Project, str], str]:
    def repair(project: Project, job: str) -> str:
        project.slurm.wait_for(job, {"PENDING", "COMPLETING", "NODE_FAIL", "REQUEUED"}, 120)
        project.slurm.start_node(node)
        return job

    return repair


FROM_OUTSIDE = [
    Fault("pre-emption (SIGUSR2)", "requeued by Slurm", comes_higher, has_stopped, most_lost=0),
    Fault("scancel, then submitted again", "the person submits", is_cancelled, submits_again),
    Fault("a node lost (slurmd, all tasks)", "requeued by Slurm", is_lost("node2"), is_repaired("node2")),
    Fault("the node of head and driver lost", "requeued by Slurm", is_lost("node1"), is_repaired("node1")),
]


def test_a_job_that_is_taken_from_its_nodes_goes_on(project: Project, undisturbed: Project, told):
    rows = list(endured(project, FROM_OUTSIDE))
    assert project.hash() == undisturbed.hash()
    for fault, lost, seconds in rows:
        told(fault.name, lost=lost, seconds=seconds, same=True, then=fault.then)


def test_an_elastic_job_goes_on_with_the_nodes_that_are_left(project: Project, undisturbed: Project, told):
    fault = Fault("a node lost, elastic", "goes on with the workers left", is_lost("node2"))
    try:
        ((_, lost, seconds),) = endured(project, [fault], "min_workers=1")
    finally:
        project.slurm.start_node("node2")
    ours, theirs = (load_file(weights(each.root)) for each in (project, undisturbed))
    for name, tensor in ours.items():  # one worker sums a batch in another order than two
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-3)
    told(fault.name, lost=lost, seconds=seconds, same=False, then=fault.then)


def weights(root: Path) -> Path:
    (found,) = (root / "models/teacher").glob("*.safetensors")
    return found
