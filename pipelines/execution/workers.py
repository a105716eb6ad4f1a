"""What runs on Ray Train's workers: the training function, with a `TrainingContext` that speaks to Ray."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ayf_core.errors import AyfError, Preempted
from ayf_core.files import first_line, write_whole
from ayf_core.registry import use_plugins
from ayf_core.training.context import LocalContext, TrainingContext

TrainFunction = Callable[[dict, TrainingContext], dict]

WORKERS_NOTE = "placement_group"
FAILURE = "failure.json"


def ray_context(folder: Path, stop_file: Path, keep: int | None) -> LocalContext:
    """A Ray Train worker's `TrainingContext`: Ray gives it a rank and a device; it commits checkpoints itself.

    Workers that Ray starts again find the newest checkpoint by looking: Ray keeps no record of them, and nothing
    waits for its controller.
    """
    import ray.train
    import ray.train.torch

    worker = ray.train.get_context()
    rank = worker.get_world_rank()
    if rank == 0:
        _note_workers(folder)
    return LocalContext(
        folder,
        ray.train.torch.get_device(),
        rank=rank,
        world_size=worker.get_world_size(),
        keep=keep,
        stop_files=[stop_file],
        tell=lambda line: None,  # the driver shows what is noted in the metrics file
    )


def _note_workers(folder: Path) -> None:
    """Write down Ray's name of the place that the workers hold, for `release_workers`."""
    from ray.util import get_current_placement_group

    held = get_current_placement_group()
    if held is not None:
        (folder / WORKERS_NOTE).write_text(held.id.hex())


def release_workers(folder: Path) -> None:
    """End the workers of a training whose driver is gone, and free what they hold: Ray keeps it for them for ever."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    note = folder / WORKERS_NOTE
    if note.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(note.read_text())))
        note.unlink()


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One training, as it travels to the workers.

    Attributes:
        train: called with `config` and a context; returns a small dict.
        folder: of the run, at the same path for all workers.
        stop_file: once it is there, training ends with a checkpoint.
        keep: so many checkpoints; None keeps all.
        threads: of each worker.
        plugins: packages that add components, and the folder of the project that may hold them.
    """

    train: TrainFunction
    config: dict[str, Any]
    folder: Path
    stop_file: Path
    keep: int | None
    threads: int
    plugins: tuple[str, ...]
    project: Path


def train_on_worker(given: dict[str, Any]) -> dict:
    """What Ray Train calls with `{"job": TrainingJob}`."""
    job: TrainingJob = given["job"]
    torch.set_num_threads(job.threads)
    if (job.folder / FAILURE).exists():  # Ray starts the workers again after a failure that will only repeat itself
        return {"failure": json.loads((job.folder / FAILURE).read_text())}
    return guarded(job, ray_context(job.folder, job.stop_file, job.keep))


def guarded(job: TrainingJob, context: TrainingContext) -> dict:
    """Train; return an error that would repeat itself, leave any other to Ray: it replaces the workers."""
    use_plugins(job.plugins, job.project)
    try:
        try:
            return {"result": job.train(job.config, context)}
        finally:
            context.wait()
    except Preempted as stop:  # all workers alike
        return {"preempted": stop.step}
    except Exception as error:
        failure = _note_failure(error, job.folder, context)
        # When another worker dies, this one sees a RuntimeError of torch.distributed: worth a new attempt.
        lost_a_peer = isinstance(error, RuntimeError | OSError) and not isinstance(error, AyfError)
        if context.world_size > 1 and lost_a_peer:
            raise
        with suppress(OSError):  # the disk may be full, and that the failure
            write_whole(job.folder / FAILURE, json.dumps(failure))
        if context.world_size > 1:
            raise  # returning would leave the other workers waiting for this one
        return {"failure": failure}


def _note_failure(error: Exception, folder: Path, context: TrainingContext) -> dict:
    if isinstance(error, AyfError):
        return {"message": str(error)}
    path = folder / f"traceback_rank{context.rank}.txt"
    path.write_text("".join(traceback.format_exception(error)))
    what = f"training stopped with {type(error).__name__}: {first_line(error)}"
    return {"message": f"{what}; the full traceback is in {path}"}


def result_or_error(outcome: dict) -> dict:
    if "preempted" in outcome:
        raise Preempted(outcome["preempted"])
    if "failure" in outcome:
        raise AyfError(outcome["failure"]["message"])
    return outcome["result"]
