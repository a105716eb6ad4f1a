"""Carries a training function to where it runs: Ray Train workers, or this very process.

`run_training` is the only place of the project that starts Ray Train. The training function knows nothing of it: it
is handed a `TrainingContext`, writes checkpoints and a metrics file through it, and returns a small dict. While it
runs, a thread of the driver follows the metrics file, draws the progress bar and hands new records to `on_log`.

Ray Train's local mode (`inline`) starts no process at all. `benchmarks/ray_overhead.py` prints seconds and ratios.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from ayf_core.registry import plugins
from ayf_core.training.checkpoint_folder import CHECKPOINTS_KEPT
from ayf_core.training.context import LocalContext
from pipelines.execution.follower import Follower, OnLog
from pipelines.execution.light_trainer import light_trainer
from pipelines.execution.own_ray import prepare_environment
from pipelines.execution.progress import TrainingProgress
from pipelines.execution.ray_connection import cluster_cpus, cluster_gpus, ray_for, require_room, require_shared
from pipelines.execution.shares import worker_threads
from pipelines.execution.stopping import handler_kept, has_stopped, stoppable
from pipelines.execution.worker_start import WorkerStart
from pipelines.execution.workers import (
    FAILURE,
    WORKERS_NOTE,
    TrainFunction,
    TrainingJob,
    guarded,
    result_or_error,
    train_on_worker,
)
from pipelines.tracking.retry import retry_for

if TYPE_CHECKING:
    from pipelines.settings.runtime import RuntimeConfig

FAILURES_FORGIVEN = 3
"""A worker that dies is replaced and goes on from the last checkpoint, this many times a run."""

_ABANDONED_SECONDS = 5.0
"""For a controller that is told to end to notice it."""

FAILURES_FORGIVEN_ON_CLUSTERS = 20
"""More where there are more machines to lose, and more days to lose them in."""


def run_training(
    train: TrainFunction,
    config: dict,
    *,
    folder: Path,
    name: str,
    runtime: RuntimeConfig,
    on_log: OnLog,
    keep_all: bool = False,
    unit: str = "steps",
) -> dict:
    """Run `train(config, context)` to its end and return what rank 0 returned.

    `folder` holds everything of this run (checkpoints, `metrics.jsonl`, `final/`): called again with the same
    folder after an interruption, training goes on from the last checkpoint. `on_log` receives every record of
    the metrics file at least once, those of an earlier, interrupted call included, from one thread.
    `keep_all` keeps every checkpoint, not two: somebody else may want to go on from one. `unit` is what a step counts.

    Raises:
        Preempted: it was asked to stop (SIGTERM, a stop file), and there is a checkpoint.
        AyfError: what `train` raised as AyfError as it is; anything else as one line naming the full traceback.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    modes: dict[str, Callable[..., dict]] = {"inline": _run_inline, "ray": _run_on_ray}
    run = modes.get(runtime.mode)
    if run is None:
        raise AyfError(f"runtime mode {runtime.mode} does not run here: `ayf submit repro runtime=slurm` does")
    with (
        stoppable(folder) as stop_file,
        TrainingProgress(name, unit=unit) as progress,
        Follower(folder / "metrics.jsonl", on_log, progress, retry_for(runtime)) as follower,
    ):
        job = TrainingJob(
            train=train,
            config=config,
            folder=folder,
            stop_file=stop_file,
            keep=None if keep_all else CHECKPOINTS_KEPT,
            threads=worker_threads(runtime),
            plugins=plugins(),
            project=Path.cwd(),
        )
        result = run(job, runtime, progress)
        follower.finish()
    return result


# -------------------------------------------------------------------------------------------- in this process


def _run_inline(job: TrainingJob, runtime: RuntimeConfig, progress: TrainingProgress) -> dict:
    """Ray Train's local mode: the same trainer without workers; no process is started."""
    prepare_environment()
    import ray.train
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it announces the local mode
    trainer = TorchTrainer(
        _train_inline,  # type: ignore[arg-type]  # Ray's annotation lags behind: the value is returned
        train_loop_config={"job": job, "device": "cuda" if uses_gpu(runtime) else "cpu"},
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name="inline", storage_path=str(job.folder)),
    )
    threads = torch.get_num_threads()
    try:
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(threads)
    return result_or_error(outcome)


def _train_inline(given: dict[str, Any]) -> dict:
    job: TrainingJob = given["job"]
    torch.set_num_threads(job.threads)
    context = LocalContext(
        job.folder,
        device=given["device"],
        keep=job.keep,
        stop_files=[job.stop_file],
        tell=lambda line: None,  # shown by whoever follows the metrics file
    )
    return guarded(job, context)


# ------------------------------------------------------------------------------------------- on Ray's workers


def _run_on_ray(job: TrainingJob, runtime: RuntimeConfig, progress: TrainingProgress) -> dict:
    progress.note("starting Ray" if runtime.address is None else "connecting to Ray")
    folder = job.folder
    here = runtime.address is None
    gpu = here and uses_gpu(runtime)
    (folder / WORKERS_NOTE).unlink(missing_ok=True)  # of an attempt whose Ray is gone
    put_back_handler = handler_kept()
    with ray_for(runtime, (runtime.workers + runtime.teacher_workers) * worker_threads(runtime)) as own:
        put_back_handler()
        gpu = gpu or (not here and _cluster_gives_gpus(runtime))
        threads = job.threads if here else cluster_threads(runtime)
        if not here:
            require_room(runtime, threads, gpu)
            require_shared(folder)
        progress.note("starting the workers")
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        trainer = light_trainer(folder)(
            train_on_worker,
            train_loop_config={"job": dataclasses.replace(job, threads=threads)},
            scaling_config=ScalingConfig(
                num_workers=_number_of_workers(runtime),  # type: ignore[arg-type]  # Ray's annotation lags
                use_gpu=gpu,
                resources_per_worker={"CPU": threads} | ({"GPU": 1} if gpu else {}),
                placement_strategy="SPREAD" if runtime.spread else "PACK",
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=FAILURES_FORGIVEN if here else FAILURES_FORGIVEN_ON_CLUSTERS),
            ),
        )
        # In a thread, because in the main thread Ray takes over Ctrl-C and may exit with success.
        fit = InThread(trainer.fit)
        try:
            watch = WorkerStart(
                (folder / WORKERS_NOTE).exists, progress.remark, own.logs if own else None, folder / "ray_logs"
            )
            outcome = fit.result(meanwhile=watch).return_value
        except Exception as error:
            if own is not None:
                with suppress(OSError):  # the disk may be full; the logs are being written
                    shutil.copytree(own.logs, folder / "ray_logs", dirs_exist_ok=True)
            if isinstance(error, AyfError):
                raise
            raise _explain(error, folder, folder / "ray_logs") from error
        finally:
            trainer.abandon()
            fit.wait(_ABANDONED_SECONDS)
            has_stopped()
    return result_or_error(outcome)


def _explain(error: Exception, folder: Path, logs: Path) -> AyfError:
    """One line for what Ray tells in a page."""
    if (folder / FAILURE).exists():
        return AyfError(json.loads((folder / FAILURE).read_text())["message"])
    path = folder / "traceback_ray.txt"
    path.write_text("".join(traceback.format_exception(error)))
    causes = getattr(error, "worker_failures", None) or {0: error}
    cause = next(iter(causes.values()))
    what = f"the workers failed time and again, last with {type(cause).__name__}"
    places = f"{path} and {logs}" if logs.exists() else str(path)
    return AyfError(f"{what}: {first_line(cause)}; more in {places}")


def cluster_threads(runtime: RuntimeConfig) -> int:
    """`worker_threads` of the connected cluster's CPUs, but no more than a node has."""
    import ray

    if runtime.threads_per_worker is not None:
        return runtime.threads_per_worker
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    return max(1, min(largest, cluster_cpus() // (runtime.workers + runtime.teacher_workers)))


def torch_device(runtime: RuntimeConfig) -> torch.device:
    """Where a stage computes that trains nothing."""
    return torch.device("cuda" if uses_gpu(runtime) else "cpu")


def uses_gpu(runtime: RuntimeConfig) -> bool:
    if runtime.device == "cpu" or (runtime.device == "auto" and not torch.cuda.is_available()):
        return False
    asked = runtime.workers + runtime.teacher_workers
    if torch.cuda.device_count() < asked:
        raise AyfError(
            f"the runtime asks for {asked} GPU workers, here are {torch.cuda.device_count()}; "
            "lower workers or set device: cpu in conf/runtime"
        )
    return True


def _number_of_workers(runtime: RuntimeConfig) -> int | tuple[int, int]:
    return (runtime.min_workers, runtime.workers) if runtime.min_workers else runtime.workers


def _cluster_gives_gpus(runtime: RuntimeConfig) -> bool:
    return runtime.device == "cuda" or (runtime.device == "auto" and cluster_gpus() > 0)


class InThread:
    """A call in a thread whose result the main thread awaits, still open to Ctrl-C."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True, name="ray-train-fit").start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> None:
        """Until the call has ended, in whatever way, but no longer than so many seconds."""
        self._done.wait(seconds)

    def result(self, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """What the call returns or raises; until then `meanwhile` is called, which may raise as well."""
        while not self._done.wait(0.2):
            meanwhile()
        if self._error is not None:
            raise self._error
        return self._value
