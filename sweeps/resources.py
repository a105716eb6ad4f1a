"""Whether a sweep fits the machine, and how long it may take: the arithmetic, said before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ayf_core.errors import AyfError
from pipelines.execution.ray_connection import size_of
from pipelines.machine import core_count
from pipelines.settings.runtime import RuntimeConfig
from sweeps.definition import Sweep


@dataclass(frozen=True)
class Resources:
    """What one trial takes, and how many train at once."""

    workers: int
    cpus: int
    gpus: int
    at_once: int
    room: int
    """CPUs there are: of this machine, or of the cluster."""

    def sentence(self) -> str:
        """For a person: "each trial takes 1 CPU; 2 at once on 2 CPUs"."""
        gpus = f" and {self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"each trial takes {_cpus(self.cpus)}{gpus}; {self.at_once} at once on {_cpus(self.room)}"


def resources_of(sweep: Sweep, runtime: RuntimeConfig) -> Resources:
    """What each trial needs, and how many fit.

    Raises:
        AyfError: not even one fits, or fewer than asked for; with the arithmetic.
    """
    on_cluster = runtime.address is not None
    here, gpus_here = size_of(runtime) if on_cluster else (core_count(), torch.cuda.device_count())
    place = "the Ray cluster" if on_cluster else "this machine"
    # Of a trial with workers of its own, the driver holds a CPU that only waits; a Ray of our own has one more for it.
    driver = 1 if on_cluster and runtime.workers > 1 else 0
    cpus = runtime.workers * runtime.trial_threads
    gpus = runtime.workers if runtime.device == "cuda" or (runtime.device == "auto" and gpus_here) else 0
    each = f"{runtime.workers} worker{'s' if runtime.workers > 1 else ''} x trial_threads {runtime.trial_threads}"
    each += " + its driver" if driver else ""
    if cpus + driver > here:
        raise AyfError(
            f"a trial takes {each} = {_cpus(cpus + driver)}, {place} has {here}: lower either in conf/runtime"
        )
    if gpus > gpus_here:
        raise AyfError(
            f"a trial takes {gpus} GPUs (workers), {place} has {gpus_here}: lower workers or set device: cpu"
        )
    fit = min(here // (cpus + driver), gpus_here // gpus if gpus else here)
    if runtime.trials_at_once and runtime.trials_at_once > fit:
        asked = f"{runtime.trials_at_once} trials at once x {_cpus(cpus)}"
        raise AyfError(f"{asked} are above the {here} here: {fit} fit; lower trials_at_once in conf/runtime")
    batch = sweep.training({}).batch_size
    if batch < runtime.workers:
        raise AyfError(f"{runtime.workers} workers cannot share a batch of {batch}: change either")
    return Resources(runtime.workers, cpus, gpus, min(runtime.trials_at_once or fit, sweep.trials), here)


def longest_seconds(sweep: Sweep, known: dict[str, float], at_once: int) -> float | None:
    """Every trial to its end, as long as a run of the stage took. None where a stage of the chain never ran here.

    Args:
        known: seconds that the last finished run of a stage took, by its name.
    """
    names = [stage.name for stage in sweep.chain]
    if any(name not in known for name in names):
        return None
    rounds = -(-sweep.trials // at_once)
    return rounds * known[names[-1]] + sum(known[name] for name in names[:-1]) * rounds


def _cpus(count: int) -> str:
    return f"{count} CPU{'s' if count != 1 else ''}"
