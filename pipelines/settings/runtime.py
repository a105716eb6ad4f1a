"""Where and how things run: the types of `conf/runtime/`, and the file that is chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ayf_core.errors import AyfError
from ayf_core.planning.hardware import HARDWARE
from ayf_core.settings import group, setting
from pipelines.redaction import apart
from pipelines.settings import tree
from pipelines.settings.places import conf_folder
from pipelines.settings.words import nearest
from pipelines.settings.yaml_file import parsed, read_typed


@dataclass
class SlurmConfig:
    """What is asked of Slurm: one task a node, which brings up that node of a Ray cluster. No effect elsewhere."""

    nodes: int = setting("machines", at_least=1, default=1)
    cpus_per_node: int = setting("cores on each", at_least=1, default=1)
    gpus_per_node: int = setting("GPUs on each", at_least=0, default=0)
    memory_gb: int | None = setting("memory on each, GB; null = the partition's default", at_least=1, default=None)
    partition: str | None = setting("null = the cluster's default", default=None)
    account: str | None = setting("whose budget", default=None)
    qos: str | None = setting("quality of service", default=None)
    constraint: str | None = setting("features that a node must have", default=None)
    timeout_minutes: int = setting("of one attempt; a job that is not done then goes on", at_least=11, default=1440)
    grace_seconds: int = setting("between the warning and the end: time for a checkpoint", at_least=10, default=120)
    wait_seconds: int = setting("for all nodes to join, once the job runs", at_least=1, default=300)
    setup: str | None = setting("a shell line before the job, e.g. module load cuda", default=None)


@dataclass
class RuntimeConfig:
    """Where and how things run; not in ``params.yaml``: a move to another machine rebuilds nothing.

    Threads and workers may change the last digits of a result, a device also the numbers that are drawn.
    """

    mode: str = setting(
        "ray = processes of Ray Train; inline = this process; slurm = a Ray inside an allocation, by `ayf submit`",
        choices=("ray", "inline", "slurm"),
        default="ray",
    )
    address: str | None = setting("of a Ray: null = its own, auto = RAY_ADDRESS, or HOST:PORT", default=None)
    workers: int = setting("training processes", at_least=1, default=1)
    min_workers: int | None = setting("elastic: go on with as few; null = all of them", at_least=1, default=None)
    spread: bool = setting("workers on as many nodes as there are, not packed on few", default=False)
    sharding: str = setting(
        "full = weights, gradients and averages in pieces over the workers", choices=("none", "full"), default="none"
    )
    teacher_workers: int = setting("processes that hold the frozen teachers; 0 = each worker", at_least=0, default=0)
    threads_per_worker: int | None = setting("null = all cores / (workers x stages_at_once)", at_least=1, default=None)
    stages_at_once: int | None = setting(
        "of `ayf repro`; null = as many as have cores (at most 4), one on a GPU", at_least=1, default=None
    )
    device: str = setting("auto = CUDA where there is one", choices=("auto", "cpu", "cuda"), default="auto")
    hardware: str | None = setting(
        "what `ayf plan` reckons with: null = this machine, or a card by name", choices=tuple(HARDWARE), default=None
    )
    micro_batch: int | str | None = setting(
        "most samples per forward and worker; auto = as many as fit into its memory",
        at_least=1,
        word="auto",
        default=None,
    )
    compile: bool = setting("networks by torch.compile: forward, backward and derivative", default=False)
    activation_checkpointing: bool = setting(
        "keep the input of each block alone, compute the rest again: less memory, more time", default=False
    )
    checkpoint_every: int = setting("steps between checkpoints", at_least=1, default=200)
    log_every: int = setting("steps between logged points", at_least=1, default=20)
    tracking_uri: str | None = setting("MLflow server; null = a SQLite store in the project", default=None)
    tracking_retry_seconds: float = setting(
        "for how long a call is repeated while the MLflow server does not answer", at_least=0.0, default=300.0
    )
    system_metrics: bool = setting("log CPU, memory and GPU use to MLflow", default=False)
    trial_threads: int = setting("threads of each worker of a sweep's trial", at_least=1, default=1)
    trials_at_once: int | None = setting("null = as many of a sweep's trials as fit", at_least=1, default=None)
    slurm: SlurmConfig = group("what is asked of Slurm", default=SlurmConfig)


def load_runtime(root: Path | None = None, name: str | None = None) -> RuntimeConfig:
    """The runtime called ``name``: a file of ``conf/runtime`` or a path to one.

    Without a name the environment variable ``AYF_RUNTIME`` names it, else it is ``local``.

    Raises:
        AyfError: no such runtime, or a setting in it is unknown or wrong.
    """
    name = name or os.environ.get("AYF_RUNTIME") or "local"
    folder = conf_folder(root or Path.cwd()) / "runtime"
    path = Path(name) if name.endswith((".yaml", ".yml")) or os.sep in name else folder / f"{name}.yaml"
    choices = sorted(file.stem for file in folder.glob("*.yaml"))
    if not path.is_file():
        guess = nearest(name, choices)
        hint = f"did you mean {guess}?" if guess else f"choose one of {', '.join(choices)}, or a path to a file"
        raise AyfError(f"no runtime {name} (from AYF_RUNTIME or conf/runtime): {hint}")
    runtime, _ = read_typed(path, RuntimeConfig, f"choose one of {', '.join(choices)}")
    if runtime.min_workers is not None and runtime.min_workers > runtime.workers:
        raise AyfError(f"{path}: min_workers {runtime.min_workers} is more than workers {runtime.workers}: lower it")
    return runtime


def with_runtime_values(runtime: RuntimeConfig, assignments: Mapping[str, str]) -> tuple[RuntimeConfig, dict[str, str]]:
    """The runtime with those of `assignments` (of a command line) that are settings of one, and those that are not.

    Raises:
        AyfError: a value has the wrong type or is out of range, or an address holds a password.
    """
    if apart(assignments.get("tracking_uri", ""))[2] is not None:
        raise AyfError(
            "the password in tracking_uri can be seen by everyone on this machine (ps): leave it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write the address into a file of conf/runtime"
        )

    values = tree.plain(RuntimeConfig, runtime)
    known = tree.keys_of(RuntimeConfig, values).settings
    own = {key: parsed(text) for key, text in assignments.items() if key in known}
    for key, value in own.items():
        tree.with_value(values, key, value)
    problems = tree.problems_of(RuntimeConfig, values)
    if problems:
        raise AyfError(problems[0])
    return tree.build(RuntimeConfig, values), {k: v for k, v in assignments.items() if k not in known}
