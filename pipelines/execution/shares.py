"""How this machine is shared out: stages at once, and the threads of each worker.

Neither depends on what happens to run beside a stage: threads may change the last digits of a result, and a stage that
is run again has to make the same. So they follow from the runtime and the machine alone, for `dvc repro`, which runs
one stage after another, as for `ayf repro`. On two cores two trainings with one thread each make 1.3 times the steps
a second of one training with two (`benchmarks/threads.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.machine import core_count, has_gpu

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

MOST_AT_ONCE = 4
"""The chain is seldom wider, and few networks are so small that more threads each would not help them."""

STAGE_GIB = 2.0
"""Memory that has to be free before one more stage begins. An estimate for small networks; `ayf plan` counts others."""


def stages_at_once(runtime: RuntimeConfig) -> int:
    """As set; else one where there is a GPU, which they would share, or as many as have a core for each worker."""
    if runtime.stages_at_once is not None:
        return runtime.stages_at_once
    if runtime.device == "cuda" or (runtime.device == "auto" and has_gpu()):
        return 1
    return max(1, min(MOST_AT_ONCE, core_count() // (runtime.workers + runtime.teacher_workers)))


def worker_threads(runtime: RuntimeConfig) -> int:
    """Threads of each worker: as set, or this machine's cores (those this process may use) shared out."""
    if runtime.threads_per_worker is not None:
        return runtime.threads_per_worker
    return max(1, core_count() // (stages_at_once(runtime) * (runtime.workers + runtime.teacher_workers)))


def has_room() -> bool:
    """Whether the memory is there for one more stage."""
    import psutil

    return psutil.virtual_memory().available >= STAGE_GIB * 2**30
