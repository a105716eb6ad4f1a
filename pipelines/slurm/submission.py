"""`ayf submit`, `jobs`, `logs`, `cancel`: jobs as folders of `runs/jobs`, which every node and login shares.

A submission's folder holds `job.json` (what, when, Slurm's id), the runtime the stages read, the log, the progress
and the rendezvous of its tasks. The terminal that submitted is not needed any more.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ayf_core.errors import AyfError
from ayf_core.files import write_whole
from pipelines.paths import require_path_for_slurm
from pipelines.project.declarations import read_declarations
from pipelines.slurm import scheduler as slurm
from pipelines.slurm.job import ClusterJob

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

_NO_JOB = "UNKNOWN"
_PASSING = {"NODE_FAIL", "PREEMPTED"}
"""The end of a job, unless it is queued again: to be seen twice."""

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"} | _PASSING

_ASK_SECONDS = 3.0
ANSWER_MINUTES = 5
"""So long Slurm may leave questions unanswered, busy or started again, before following a job ends."""


@dataclass(frozen=True)
class Submitted:
    """One submission, as its `job.json` tells."""

    folder: Path
    job: str
    what: str
    submitted: str
    nodes: int

    @property
    def log(self) -> Path:
        """What task 0 and its driver say."""
        return self.folder / f"{self.job}_0_log.out"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.jsonl"

    def state(self) -> str:
        """Slurm's word for it, e.g. RUNNING; UNKNOWN where Slurm has forgotten the job."""
        return states([self])[self.job]


def submit(root: Path, target: Sequence[str], runtime: RuntimeConfig) -> Submitted:
    """Submit `repro`, a stage of dvc.yaml, or `sweep NAME`, to run with `runtime` inside an allocation.

    Raises:
        AyfError: no such target; no Slurm here; more asked for than it has; Slurm refuses.
    """
    root = root.absolute()
    first, again = commands(root, target)
    require_path_for_slurm(root)
    slurm.check(runtime)
    what = " ".join(target)
    folder = _fresh_folder(root / "runs" / "jobs", what)
    inside = folder / "runtime.yaml"
    inside.touch(mode=0o600)  # an address of a server may hold a password
    inside.write_text(yaml.safe_dump(_runtime_inside(runtime), sort_keys=False))
    job = ClusterJob(
        root=root,
        folder=folder,
        command=first,
        again=again,
        runtime=inside,
        nodes=runtime.slurm.nodes,
        cpus=runtime.slurm.cpus_per_node,
        gpus=runtime.slurm.gpus_per_node,
        wait_seconds=runtime.slurm.wait_seconds,
        grace_seconds=runtime.slurm.grace_seconds,
        elastic=runtime.min_workers is not None,
    )
    number = _handed_to_slurm(slurm.executor(runtime, folder, f"ayf {what}"), job)
    made = Submitted(folder, number, what, datetime.now().isoformat(timespec="seconds"), runtime.slurm.nodes)
    about = {key: value for key, value in dataclasses.asdict(made).items() if key != "folder"}
    write_whole(folder / "job.json", json.dumps(about))
    return made


def commands(root: Path, target: Sequence[str]) -> tuple[list[str], list[str]]:
    """The driver's command, and the one that goes on after an interruption.

    Raises:
        AyfError: there is no such stage or sweep.
    """
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"]
    declared = read_declarations(root)
    stages = dict.fromkeys([*declared, *(declaration.base for declaration in declared.values())])
    match list(target):
        case ["repro"]:
            return dvc, dvc
        case ["sweep", name]:
            if not (root / "sweeps" / f"{name}.yaml").is_file():
                names = ", ".join(sorted(file.stem for file in (root / "sweeps").glob("*.yaml")))
                raise AyfError(f"no sweep {name}: there are {names}")
            sweep = [sys.executable, "-m", "pipelines.commands.main", "sweep", name]
            return [*sweep, "--new"], [*sweep, "--resume", "--new"]
        case [name] if name in stages:
            return [*dvc, name], [*dvc, name]
    known = ", ".join(["repro", "sweep NAME", *stages])
    raise AyfError(f"cannot submit {' '.join(target) or 'nothing'}: give one of {known}")


def _runtime_inside(runtime: RuntimeConfig) -> dict[str, Any]:
    """The runtime for what runs inside the job: the job's Ray, by its address."""
    inside = dataclasses.replace(runtime, mode="ray", address="auto")
    return {key: value for key, value in dataclasses.asdict(inside).items() if key != "slurm"}


def _fresh_folder(jobs: Path, what: str) -> Path:
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{what.replace(' ', '-').replace('@', '-')}"
    for number in range(100):
        folder = jobs / (name if number == 0 else f"{name}-{number + 1}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise AyfError(f"{jobs} is full of jobs of this second: try again")


def _handed_to_slurm(executor: Any, job: ClusterJob) -> str:
    from submitit.core.utils import FailedJobError

    # A job inherits the environment: nothing of an allocation that this process may be part of, no secret of a Ray.
    dropped = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("SLURM_", "SRUN_", "RAY_"))}
    kept = {name: dropped[name] for name in ("SLURM_CONF",) if name in dropped}
    os.environ.update(kept)
    try:
        return str(executor.submit(job).job_id)
    except FailedJobError as error:
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        words = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no reason")
        raise AyfError(f"Slurm did not take the job: {words.removeprefix('sbatch: error: ')}") from error
    finally:
        os.environ.update(dropped)


# ---------------------------------------------------------------------------------------------- what became of it


def jobs(root: Path) -> list[Submitted]:
    """Every submission of this project, oldest first."""
    found = []
    for about in sorted((root / "runs" / "jobs").glob("*/job.json")):
        try:
            found.append(Submitted(folder=about.parent, **json.loads(about.read_text())))
        except (ValueError, TypeError) as error:
            raise AyfError(f"{about} is damaged: remove its folder") from error
    return found


def find(root: Path, job: str | None) -> Submitted:
    """The submission with Slurm's id `job`, the newest of that id; None means the newest of all.

    Raises:
        AyfError: there is none.
    """
    known = jobs(root)
    if not known:
        raise AyfError("nothing was submitted from this project: `ayf submit repro runtime=slurm` does")
    match = [each for each in known if job is None or each.job == job]
    if not match:
        raise AyfError(f"no job {job} of this project: there are {', '.join(each.job for each in known)}")
    return match[-1]


def states(submitted: Sequence[Submitted]) -> dict[str, str]:
    """Slurm's word for each, by job id: from its controller, or once it has forgotten a job from the accounting."""
    found = {each.job: _NO_JOB for each in submitted}
    if not found:
        return found
    wanted = ",".join(found)
    for line in slurm.ask("squeue", "--noheader", "--states=all", "--format=%i|%T", "--user", str(os.getuid())).split():
        job, _, state = line.partition("|")
        if job in found:
            found[job] = state
    if _NO_JOB in found.values():
        try:
            told = slurm.ask("sacct", "--noheader", "--parsable2", "-X", "--format=JobID,State", "--jobs", wanted)
        except AyfError:
            return found  # no accounting on this cluster
        for line in told.splitlines():
            job, _, state = line.partition("|")
            if found.get(job) == _NO_JOB:
                found[job] = state.split()[0]
    return found


def cancel(submitted: Submitted) -> str:
    """End the job; returns its state before."""
    state = submitted.state()
    if state not in ENDED:
        slurm.ask("scancel", submitted.job)
    return state


# ------------------------------------------------------------------------------------------------ following


def follow(submitted: Submitted, poll_seconds: float = 0.5) -> str:
    """Show the log and the progress as they grow until the job has ended; returns Slurm's last word.

    Ctrl-C ends the following, not the job.
    """
    from pipelines.slurm.following import LogTail, ProgressMirror

    state, asked, answered = "", 0.0, time.monotonic()
    log = LogTail(submitted.log)
    ended = False
    with ProgressMirror(submitted.progress) as mirror:
        while True:
            text = log.new()
            if text:
                mirror.print(text)
            mirror.update()
            if ended and not text:
                return state
            if time.monotonic() - asked > _ASK_SECONDS:
                before, asked = state, time.monotonic()
                try:
                    state, answered = submitted.state(), time.monotonic()
                except AyfError:
                    if time.monotonic() - answered > 60 * ANSWER_MINUTES:
                        raise
                    continue
                if state != before and state not in ENDED and not log.started:
                    mirror.print(f"job {submitted.job} is {state.lower()}\n")
                ended = state in ENDED - _PASSING or (state == before and state in {*_PASSING, _NO_JOB})
            time.sleep(poll_seconds)


def show(path: Path, lines: int) -> None:
    """Print the end of a log."""
    if not path.exists():
        raise AyfError(f"no log yet at {path}: the job has not started")
    subprocess.run(["tail", "-n", str(lines), str(path)], check=False)
