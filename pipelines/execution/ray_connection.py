"""The Ray that a stage or a sweep works on: the one it is part of, an existing one, its chain's, or one of its own."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ayf_core.errors import AyfError
from pipelines.execution.attempt import ATTEMPT
from pipelines.execution.existing_ray import ExistingRay, address_of
from pipelines.execution.own_ray import OwnRay, prepare_environment
from pipelines.execution.shared_ray import Chain, SharedRay, shared_ray

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

REJOIN_SECONDS = 60.0

RayHere = OwnRay | SharedRay
"""A Ray on this machine."""


def ray_for(runtime: RuntimeConfig, cpus: int) -> AbstractContextManager[RayHere | None]:
    """A context in which this process is connected to a Ray; of one on this machine it has the `logs`.

    A trial of a sweep is part of the sweep's already; `runtime.address` names an existing one; the stages of a chain
    share one; else one with `cpus` CPUs is started on this machine.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return nullcontext()
    if runtime.address is not None:
        return ExistingRay(address_of(runtime))
    chain = Chain.of_environment(Path.cwd())
    return (shared_ray(chain, cpus) if chain else None) or OwnRay(cpus)


def require_room(runtime: RuntimeConfig, cpus_per_worker: int, gpus: bool) -> None:
    """Compare what the workers need with what the connected cluster has.

    Raises:
        AyfError: fewer workers fit than must run, with the arithmetic.
    """
    import ray

    need: dict[str, float] = {"CPU": cpus_per_worker}
    if gpus:
        need["GPU"] = 1
    fewest = (runtime.min_workers or runtime.workers) + runtime.teacher_workers
    # In a job, a node whose Ray has died gets another.
    deadline = time.monotonic() + (REJOIN_SECONDS if ATTEMPT in os.environ else 0.0)
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fit = sum(min(int(node.get(kind, 0) // amount) for kind, amount in need.items()) for node in nodes)
        if fit >= fewest or time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    if fit < fewest:
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in need.items())
        have = ", ".join(" and ".join(f"{node.get(kind, 0):g} {kind}" for kind in need) for node in nodes)
        raise AyfError(
            f"{fewest} workers of {each} each do not fit the Ray cluster: its {len(nodes)} nodes have {have}, "
            f"so {fit} fit; lower workers or threads_per_worker, or ask for more nodes"
        )


def size_of(runtime: RuntimeConfig) -> tuple[int, int]:
    """CPUs and GPUs of the Ray cluster that `runtime.address` names.

    Raises:
        AyfError: it cannot be connected to.
    """
    with ray_for(runtime, 0):
        return cluster_cpus(), cluster_gpus()


def cluster_cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def cluster_gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def require_shared(folder: Path) -> None:
    """Have every node of the connected cluster read a note that is written to `folder` here.

    Raises:
        AyfError: a node does not see it; names the node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    note, text = folder / "driver", secrets.token_hex(8)
    note.write_text(text)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        ray.remote(_sees)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(note, text)
        for node in nodes
    ]
    blind = [node["NodeManagerHostname"] for node, seen in zip(nodes, ray.get(answers), strict=True) if not seen]
    note.unlink()
    if blind:
        raise AyfError(
            f"{folder} is not shared: node {blind[0]} does not see what is written here; the project has to lie in a "
            "folder that all nodes share, under one path"
        )


def _sees(note: Path, text: str) -> bool:
    deadline = time.monotonic() + 15.0  # network file systems may show a new file late
    while time.monotonic() < deadline:
        try:
            if note.read_text() == text:
                return True
        except OSError:
            pass
        time.sleep(0.5)
    return False
