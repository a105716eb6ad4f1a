"""What Slurm has and what is asked of it: checked before a job is submitted, in the words of the runtime's settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayf_core.errors import AyfError
from pipelines.settings import words as settings

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig, SlurmConfig

ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Node:
    """A machine of a partition."""

    partition: str
    name: str
    cpus: int
    memory_mb: int
    gpus: int


def ask(*command: str) -> str:
    """What a Slurm command prints.

    Raises:
        AyfError: there is no Slurm here, or its controller does not answer or refuses.
    """
    if shutil.which(command[0]) is None:
        raise AyfError(
            f"no Slurm here ({command[0]} not found): submit from a login node of the cluster, "
            "or run on this machine with AYF_RUNTIME=local dvc repro"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        what = f"Slurm's controller did not answer `{command[0]}` within {ANSWER_SECONDS:.0f} s"
        raise AyfError(f"{what}: try again, or ask the cluster's administrators") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        if "configuration source" in lines[-1]:
            raise AyfError(
                "no Slurm here (its programs are, but neither slurm.conf nor SLURM_CONF): submit from a login node of "
                "the cluster, or run on this machine with AYF_RUNTIME=local dvc repro"
            )
        raise AyfError(f"Slurm refused `{' '.join(command)}`: {lines[-1]}")
    return done.stdout


def nodes() -> list[Node]:
    """Every node of every partition, as `sinfo` tells."""
    found = []
    for line in ask("sinfo", "--noheader", "--Node", "--format", "%R|%N|%c|%m|%G|%T").splitlines():
        partition, name, cpus, memory, gres, state = line.strip().split("|")
        if not state.startswith(("down", "drain", "fail", "unknown")):
            found.append(Node(partition, name, _number(cpus), _number(memory), _gpus(gres)))
    return found


def _number(text: str) -> int:
    return int(re.match(r"\d+", text)[0]) if re.match(r"\d+", text) else 0  # type: ignore[index]


def _gpus(gres: str) -> int:
    """GPUs in a GRES list such as `gpu:h100:8(S:0-1),shard:64`."""
    return sum(int(match[1]) for match in re.finditer(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def default_partition() -> str:
    """The partition of jobs that name none; empty where there is none."""
    names = ask("sinfo", "--noheader", "--format", "%P").split()
    return next((name.rstrip("*") for name in names if name.endswith("*")), "")


def check(runtime: RuntimeConfig) -> None:
    """Compare what the runtime asks for with what the partition has.

    Raises:
        AyfError: no Slurm, no such partition, or more than it has: with the arithmetic.
    """
    slurm = runtime.slurm
    everything = nodes()
    partitions = sorted({node.partition for node in everything})
    wanted = slurm.partition or default_partition()
    there = [node for node in everything if node.partition == wanted]
    if not there:
        guess = settings.nearest(wanted, partitions)
        hint = (
            f"did you mean {guess}?" if guess else f"there are {', '.join(partitions) or 'none with nodes that are up'}"
        )
        raise AyfError(
            f"Slurm has no partition {wanted or '(no default)'} with nodes that are up: {hint} (slurm.partition)"
        )
    _check_nodes(slurm, wanted, there)
    _check_workers(runtime)


def _check_nodes(slurm: SlurmConfig, partition: str, there: list[Node]) -> None:
    if slurm.nodes > len(there):
        raise AyfError(
            f"slurm.nodes = {slurm.nodes}, but partition {partition} has {len(there)} that are up: ask for fewer"
        )
    asked: dict[str, tuple[int, str, list[int]]] = {
        "gpus_per_node": (slurm.gpus_per_node, "GPUs", [node.gpus for node in there]),
        "cpus_per_node": (slurm.cpus_per_node, "CPUs", [node.cpus for node in there]),
        "memory_gb": (slurm.memory_gb or 0, "GB", [node.memory_mb // 1024 for node in there]),
    }
    for key, (amount, what, each_has) in asked.items():
        enough = sum(amount <= each for each in each_has)
        if enough < slurm.nodes:
            best = f"the largest node of partition {partition} has {max(each_has)}"
            if enough:
                best = f"only {enough} of the {len(there)} nodes of partition {partition} have as many"
            raise AyfError(f"slurm.{key} = {amount} {what}: {best}; ask for fewer")


def _check_workers(runtime: RuntimeConfig) -> None:
    slurm = runtime.slurm
    fewest = runtime.min_workers or runtime.workers
    threads = runtime.threads_per_worker or 1
    fit = slurm.nodes * (slurm.cpus_per_node // threads)
    if fewest > fit:
        raise AyfError(
            f"{fewest} workers of {threads} CPU each do not fit {slurm.nodes} nodes of {slurm.cpus_per_node} CPUs "
            f"({fit} fit): raise slurm.nodes or slurm.cpus_per_node, or lower workers"
        )
    gpus = slurm.nodes * slurm.gpus_per_node
    if runtime.device == "cuda" and fewest > gpus:
        raise AyfError(
            f"{fewest} workers on GPUs, but {slurm.nodes} nodes x {slurm.gpus_per_node} GPUs = {gpus}: raise them"
        )


def executor(runtime: RuntimeConfig, folder: Path, name: str) -> Any:
    """A submitit executor for one job of this runtime: one task a node."""
    import submitit

    slurm = runtime.slurm
    chosen = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "mem": f"{slurm.memory_gb}GB" if slurm.memory_gb else None,
        "setup": [slurm.setup] if slurm.setup else None,
    }
    parameters: dict[str, Any] = {"requeue": True}
    # Since Slurm 22.05 a step no longer inherits the CPUs of its job.
    step = [f"--cpus-per-task={slurm.cpus_per_node}", "--kill-on-bad-exit=0"]
    if runtime.min_workers:  # elastic: the job outlives its nodes
        parameters["no_kill"] = True
        step.append("--no-kill")
    made = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=10**6)
    made.update_parameters(
        name=name,
        nodes=slurm.nodes,
        tasks_per_node=1,
        cpus_per_task=slurm.cpus_per_node,
        gpus_per_node=slurm.gpus_per_node or None,
        timeout_min=slurm.timeout_minutes,
        stderr_to_stdout=True,
        slurm_signal_delay_s=slurm.grace_seconds,
        slurm_srun_args=step,
        slurm_additional_parameters=parameters,
        **{f"slurm_{key}": value for key, value in chosen.items() if value is not None},
    )
    return made
