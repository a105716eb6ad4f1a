"""Carries a training function to where it runs: Ray Train workers, or this very process.

`run_training` is the only place of the project that talks to Ray Train. The training function knows nothing
of it: it is handed a `TrainingContext`, writes checkpoints and a metrics file through it, and returns a small
dict. While it runs, a thread of the driver follows the metrics file, draws the progress bar and hands new
records to `on_log`.

A stage starts a Ray of its own, and it is kept light. CPU seconds of all Ray processes of a trivial run with one
worker (ray 2.60; CPU seconds because they depend less than wall time on what else the machine does):

    usual helpers, workers started ahead             18.1
    without two helpers (`_light_trainer`)           13.3
    and without workers started ahead                12.3    <- chosen
    and with three workers warmed up at the start    23.6

Ray Train's local mode (`inline`) starts no process at all. `benchmarks/ray_overhead.py` prints seconds and ratios.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ayf_core.errors import AyfError
from ayf_core.training.context import (
    LocalContext,
    MetricsFile,
    TrainingContext,
    checkpoint_step,
    complete_checkpoints,
    write_checkpoint,
)
from pipelines.progress import TrainingProgress

if TYPE_CHECKING:
    from pipelines.config import RuntimeConfig

TrainFunction = Callable[[dict, TrainingContext], dict]
OnLog = Callable[[list[dict]], None]

WORKER_FAILURES_FORGIVEN = 3
"""A worker that dies is replaced and goes on from the last checkpoint, this many times a run."""

_POLL_SECONDS = 0.25
_LOG_RETRY_SECONDS = 5.0
_FAILURE = "failure.json"
WORKERS_NOTE = "placement_group"

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
}
"""Ray reads these when it is imported. Its workers are polite (nice 15) by default: beside any other work they would
starve. A report waits for the next health check: 2 s unless set."""


def run_training(
    train: TrainFunction,
    config: dict,
    *,
    folder: Path,
    name: str,
    runtime: RuntimeConfig,
    on_log: OnLog,
    keep_all: bool = False,
) -> dict:
    """Run `train(config, context)` to its end and return what rank 0 returned.

    `folder` holds everything of this run (checkpoints, `metrics.jsonl`, `final/`): called again with the same
    folder after an interruption, training goes on from the last checkpoint. `on_log` receives every record of
    the metrics file at least once, those of an earlier, interrupted call included, from one thread.
    `keep_all` keeps every checkpoint of Ray's workers, not two: somebody else may want to go on from one.

    Raises AyfError: what `train` raised as AyfError as it is; anything else as one line naming the full
    traceback.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FAILURE).unlink(missing_ok=True)
    modes: dict[str, Callable[..., dict]] = {"inline": _run_inline, "ray": partial(_run_on_ray, keep_all=keep_all)}
    run = modes.get(runtime.mode)
    if run is None:
        raise AyfError(f"runtime mode {runtime.mode!r} is unknown; there are 'ray' and 'inline'")
    with (
        TrainingProgress(name) as progress,
        _Follower(folder / "metrics.jsonl", on_log, progress) as follower,
    ):
        result = run(train, config, folder, runtime, progress)
        follower.finish()
    return result


# -------------------------------------------------------------------------------------------- in this process


def _run_inline(
    train: TrainFunction, config: dict, folder: Path, runtime: RuntimeConfig, progress: TrainingProgress
) -> dict:
    """Ray Train's local mode: the same trainer without workers; no process is started."""
    prepare_environment()
    import ray.train
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it announces the local mode
    job = {"train": train, "config": config, "folder": str(folder), "threads": worker_threads(runtime)}
    job["device"] = "cuda" if _uses_gpu(runtime) else "cpu"
    trainer = TorchTrainer(
        _train_inline,  # type: ignore[arg-type]  # Ray's annotation lags behind: the value is returned
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name="inline", storage_path=str(folder)),
    )
    threads = torch.get_num_threads()
    try:
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(threads)
    return _result_or_error(outcome)


def _train_inline(job: dict) -> dict:
    torch.set_num_threads(job["threads"])
    context = LocalContext(job["folder"], device=job["device"])
    return _guarded(job, context)


# ------------------------------------------------------------------------------------------- on Ray's workers


class RayContext:
    """A Ray Train worker's `TrainingContext`.

    The checkpoint folder is Ray's experiment folder: rank 0 writes a checkpoint to its lasting place,
    complete once renamed, and reports it to Ray, which notes it, keeps two, and hands the newest to workers
    that start later.
    """

    def __init__(self, folder: Path) -> None:
        import ray.train
        import ray.train.torch

        worker = ray.train.get_context()
        self.rank: int = worker.get_world_rank()
        self.world_size: int = worker.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.folder = folder
        self._checkpoints = folder / "checkpoints"
        self._resumed = self._newest_checkpoint()
        self._metrics = None
        if self.rank == 0:
            _note_workers(folder)
            resumed_step = checkpoint_step(self._resumed) if self._resumed else 0
            self._metrics = MetricsFile(folder / "metrics.jsonl", resumed_step)

    def latest_checkpoint(self) -> Path | None:
        return self._resumed

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        import ray.train

        checkpoint = None
        if self.rank == 0:
            self._resumed = write_checkpoint(self._checkpoints, step, write)
            checkpoint = ray.train.Checkpoint.from_directory(self._resumed)
        ray.train.report(  # a barrier: when it returns on any rank, rank 0's checkpoint is complete
            {"step": step},
            checkpoint=checkpoint,
            checkpoint_dir_name=f"step_{step:08d}",
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )
        self._resumed = self._checkpoints / f"step_{step:08d}"

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.append(step, total, metrics)

    def _newest_checkpoint(self) -> Path | None:
        """What Ray has noted, or a newer one that was complete when a kill came before Ray's note."""
        import ray.train

        found = complete_checkpoints(self._checkpoints)[-1:]
        noted = ray.train.get_checkpoint()
        if noted is not None:
            found.append(Path(noted.path))
        return max(found, key=checkpoint_step, default=None)


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


def _run_on_ray(
    train: TrainFunction,
    config: dict,
    folder: Path,
    runtime: RuntimeConfig,
    progress: TrainingProgress,
    keep_all: bool,
) -> dict:
    progress.note("starting Ray")
    prepare_environment()
    gpu = _uses_gpu(runtime)
    _mend_ray_record(folder / "checkpoints")
    threads = worker_threads(runtime)
    job = {"train": train, "config": config, "folder": str(folder), "threads": threads}
    with _ray(cpus=runtime.workers * threads) as own:
        progress.note("starting the workers")
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

        trainer = _light_trainer()(
            _train_on_worker,
            train_loop_config=job,
            scaling_config=ScalingConfig(
                num_workers=runtime.workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": threads},
            ),
            run_config=RunConfig(
                name="checkpoints",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=WORKER_FAILURES_FORGIVEN),
                checkpoint_config=CheckpointConfig(num_to_keep=None if keep_all else 2),
            ),
        )
        # In a thread, because in the main thread Ray takes over Ctrl-C and may exit with success.
        fit = InThread(trainer.fit)
        try:
            outcome = fit.result().return_value
        except Exception as error:
            if own is not None:
                shutil.copytree(own.logs, folder / "ray_logs", dirs_exist_ok=True)
            raise _explain(error, folder, folder / "ray_logs") from error
    return _result_or_error(outcome)


def _train_on_worker(job: dict) -> dict:
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    if (folder / _FAILURE).exists():  # Ray starts the workers again after a failure that will only repeat itself
        return {"failure": json.loads((folder / _FAILURE).read_text())}
    return _guarded(job, RayContext(folder))


def _guarded(job: dict, context: TrainingContext) -> dict:
    """Train; return an error that would repeat itself, leave any other to Ray: it replaces the workers."""
    try:
        return {"result": job["train"](job["config"], context)}
    except Exception as error:
        failure = _note_failure(error, Path(job["folder"]), context)
        # When another worker dies, this one sees a RuntimeError of torch.distributed: worth a new attempt.
        lost_a_peer = isinstance(error, RuntimeError | OSError) and not isinstance(error, AyfError)
        if context.world_size > 1 and lost_a_peer:
            raise
        (Path(job["folder"]) / _FAILURE).write_text(json.dumps(failure))
        if context.world_size > 1:
            raise  # returning would leave the other workers waiting for this one
        return {"failure": failure}


def _note_failure(error: Exception, folder: Path, context: TrainingContext) -> dict:
    if isinstance(error, AyfError):
        return {"message": str(error)}
    path = folder / f"traceback_rank{context.rank}.txt"
    path.write_text("".join(traceback.format_exception(error)))
    first_line = (str(error).strip() or "no message").splitlines()[0]
    what = f"training stopped with {type(error).__name__}: {first_line}"
    return {"message": f"{what}; the full traceback is in {path}"}


def _result_or_error(outcome: dict) -> dict:
    if "failure" in outcome:
        raise AyfError(outcome["failure"]["message"])
    return outcome["result"]


def _explain(error: Exception, folder: Path, logs: Path) -> AyfError:
    """One line for what Ray tells in a page."""
    if (folder / _FAILURE).exists():
        return AyfError(json.loads((folder / _FAILURE).read_text())["message"])
    path = folder / "traceback_ray.txt"
    path.write_text("".join(traceback.format_exception(error)))
    causes = getattr(error, "worker_failures", None) or {0: error}
    cause = next(iter(causes.values()))
    first_line = (str(cause).strip() or "no message").splitlines()[0]
    what = f"the workers failed {WORKER_FAILURES_FORGIVEN + 1} times, last with {type(cause).__name__}"
    return AyfError(f"{what}: {first_line}; more in {path} and {logs}")


def worker_threads(runtime: RuntimeConfig) -> int:
    """Threads of each worker: as set, or this machine's cores (those this process may use) shared out."""
    if runtime.threads_per_worker is not None:
        return runtime.threads_per_worker
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // runtime.workers)


def torch_device(runtime: RuntimeConfig) -> torch.device:
    """Where a stage computes that trains nothing."""
    return torch.device("cuda" if _uses_gpu(runtime) else "cpu")


def _uses_gpu(runtime: RuntimeConfig) -> bool:
    if runtime.device == "cpu" or (runtime.device == "auto" and not torch.cuda.is_available()):
        return False
    if torch.cuda.device_count() < runtime.workers:
        raise AyfError(
            f"the runtime asks for {runtime.workers} GPU workers, here are {torch.cuda.device_count()}; "
            "lower workers or set device: cpu in conf/runtime"
        )
    return True


def _mend_ray_record(experiment: Path) -> None:
    """Remove Ray's list of checkpoints if it is torn (Ray writes it in place) or names missing folders.

    Ray would refuse to start. Nothing is lost: the checkpoints themselves say which is the newest complete
    one.
    """
    record = experiment / "checkpoint_manager_snapshot.json"
    if not record.exists():
        return
    import ray

    try:
        known = json.loads(record.read_text())
        names = [result["checkpoint_dir_name"] for result in known["checkpoint_results"]]
        sound = known["ray_version"] == ray.__version__ and all((experiment / name).is_dir() for name in names)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        record.unlink()


def _ray(cpus: int) -> AbstractContextManager[OwnRay | None]:
    """The Ray that this process is part of (a trial of a sweep is part of the sweep's), or one of its own."""
    import ray

    return nullcontext() if ray.is_initialized() else OwnRay(cpus)


def _light_trainer() -> type:
    """`TorchTrainer` without two helpers that have no use here, each a process that takes more than a second to start.

    One hands out Ray Data sets (there are none); one outlives the controller to free its workers (the whole Ray ends
    with this process, and a sweep frees those of its trials by `release_workers`).
    """
    from ray.train.torch import TorchTrainer

    class LightTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list:
            unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")
            made = super()._create_default_callbacks()  # type: ignore[misc]
            return [c for c in made if type(c).__name__ not in unused]

    return LightTrainer


def prepare_environment() -> None:
    """Set what Ray reads when it is imported, unless it is set already."""
    for variable, value in RAY_SETTINGS.items():
        os.environ.setdefault(variable, value)


_TOKEN = secrets.token_hex(32)
"""One a process: Ray reads the token once, so the next Ray of the same process has to take the same."""


class OwnRay:
    """A Ray of this stage's (or sweep's) own, on this machine, gone when it ends.

    Its files lie in a folder of its own, so other people's Ray on the same machine and left-overs of killed
    ones do not matter; nor does RAY_ADDRESS.
    """

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        # Unix socket paths are limited to 107 bytes: TMPDIR may be too long, /tmp is not.
        base = "/tmp" if os.access("/tmp", os.W_OK) else None
        self._sweep(Path(base or tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=f"ayf-ray-{os.getpid()}-", dir=base))
        self.logs = self._folder / "session_latest" / "logs"

    def __enter__(self) -> OwnRay:
        self._saved = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN
        import ray

        if ray.is_initialized():
            raise AyfError("Ray is already running in this process; run_training starts its own")
        try:
            ray.init(
                address="local",
                num_cpus=self._cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=100 * 2**20,  # nothing but a few small dicts passes through it
                _temp_dir=str(self._folder),
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    @staticmethod
    def _sweep(base: Path) -> None:
        """Remove what drivers that were killed left behind; folders of other users stay, they cannot be removed."""
        for left_over in base.glob("ayf-ray-*-*"):
            driver = left_over.name.split("-")[2]
            if driver.isdigit() and not Path("/proc", driver).exists() and Path("/proc/self").exists():
                shutil.rmtree(left_over, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        for name, value in self._saved.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(self._folder, ignore_errors=True)


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

    def result(self) -> Any:
        while not self._done.wait(0.2):
            pass
        if self._error is not None:
            raise self._error
        return self._value


# -------------------------------------------------------------------------------------------- following a run


class _Follower:
    """Follows a metrics file from a thread: shows new records and hands them to `on_log`.

    Where `on_log` fails (a tracking server that went away), the records are kept and offered again; training
    goes on.
    """

    def __init__(self, path: Path, on_log: OnLog, progress: TrainingProgress) -> None:
        self._path = path
        self._on_log = on_log
        self._progress = progress
        self._inode: int | None = None
        self._read = 0
        self._backlog: list[dict] = []
        self._retry_at = 0.0
        self._log_error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="follow-metrics")

    def __enter__(self) -> _Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._step(last=True)

    def finish(self) -> None:
        """Hand over the rest. Raises AyfError if `on_log` did not take it."""
        self._close()
        if self._backlog:
            message = f"training finished, but its metrics could not be logged ({self._log_error})"
            raise AyfError(f"{message}; run the same command again and they will be") from self._log_error

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._step()

    def _step(self, last: bool = False) -> None:
        records = self._new_records()
        self._progress.update(records)
        self._backlog += records
        if self._backlog and (last or time.monotonic() >= self._retry_at):
            try:
                self._on_log(self._backlog)
                self._backlog = []
            except Exception as error:
                self._log_error = error
                self._retry_at = time.monotonic() + _LOG_RETRY_SECONDS

    def _new_records(self) -> list[dict]:
        """Records added since the last call; all of them if the file was replaced, as a resumed run does."""
        if not self._path.exists():
            return []
        inode = self._path.stat().st_ino
        if inode != self._inode:
            self._inode, self._read = inode, 0
        with self._path.open() as file:
            file.seek(self._read)
            text = file.read()
        complete = text[: text.rfind("\n") + 1]
        self._read += len(complete.encode())
        return [json.loads(line) for line in complete.splitlines()]
