"""Runs the trials of a sweep on Ray Tune: those of the search, then those that confirm what it found."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ayf_core.training.context import STOP_FILE
from pipelines.execution.own_ray import prepare_environment
from pipelines.execution.ray_connection import RayHere, ray_for
from pipelines.execution.ray_train import InThread
from pipelines.execution.stopping import STOP_WITHIN_SECONDS, STOPPED
from pipelines.execution.worker_start import WorkerStart
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.runs import StageRun
from sweeps.answer import Answer, answer_of, confirmation_points
from sweeps.definition import Sweep
from sweeps.ledger import Ledger, Trial
from sweeps.mlflow_runs import confirmation_opener, trial_opener
from sweeps.place import Place
from sweeps.resources import Resources
from sweeps.view import TrialsView

RAY_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own files: the ledger has it all
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nor is its pickled state read again
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def searched_and_confirmed(
    place: Place, resources: Resources, parent: StageRun, trainable: Callable | None, console: Console
) -> Answer:
    for variable, value in RAY_TUNE_SETTINGS.items():
        os.environ.setdefault(variable, value)
    prepare_environment()  # before Ray is imported
    from sweeps.search import listed, source_of

    sweep = place.sweep
    search = Ledger(place.search)
    with ExitStack() as stack:
        run = partial(_run_trials, resources=resources, stack=stack, trainable=trainable, console=console)
        run(place, search, source_of(sweep), sweep.trials, trial_opener(place, parent))
        answer = answer_of(sweep, search)
        points = confirmation_points(sweep, answer)
        confirmation = Ledger(place.confirmation)
        if points:
            console.print(f"confirming on training seeds {sweep.search.confirm_seeds}", highlight=False)
            confirming = dataclasses.replace(
                place, sweep=dataclasses.replace(sweep, search=dataclasses.replace(sweep.search, scheduler="none"))
            )
            opener = confirmation_opener(confirming, parent, answer)
            run(confirming, confirmation, listed(points), len(points), opener)
    return answer.confirmed(sweep, confirmation)


def _enter_ray(stack: ExitStack, resources: Resources, runtime: RuntimeConfig, console: Console) -> RayHere | None:
    """One Ray for search and confirmation, entered when the first of them has something to run."""
    import ray

    if ray.is_initialized():
        return None
    console.print("starting Ray" if runtime.address is None else "connecting to Ray", highlight=False)
    # Drivers of nested trainers wait; they are given CPUs of their own, which cost nothing.
    drivers = 1 if resources.workers > 1 else 0
    return stack.enter_context(ray_for(runtime, resources.at_once * (resources.cpus + drivers)))


def _run_trials(
    place: Place,
    ledger: Ledger,
    source: Any,
    count: int,
    opener: Callable[[Trial], StageRun],
    *,
    resources: Resources,
    stack: ExitStack,
    trainable: Callable | None,
    console: Console,
) -> None:
    """Run what a ledger still lacks of `count` trials."""
    from ray import tune

    from sweeps.recorder import TrialRecorder, record_missed
    from sweeps.search import Proposals, scheduler_of
    from sweeps.trial import TrialJob, run_trial

    record_missed(ledger, opener)
    if len(ledger.ended) >= count:
        return
    own = _enter_ray(stack, resources, place.runtime, console)
    sweep = place.sweep
    job = TrialJob(
        root=place.root,
        sweep=sweep,
        runtime=_with_cadence(place.runtime, sweep),
        trials=ledger.folder,
        shared=place.folder / "shared",
    )
    population = sweep.search.scheduler == "population"
    until = time.monotonic() + 3600 * sweep.search.hours if sweep.search.hours else float("inf")
    proposals = Proposals(ledger, source, count, until)
    random.seed(sweep.search.seed)  # a population's mutations
    nested = resources.workers > 1
    scratch = place.folder / "tune"  # Tune's own notes, of no use later, where every node sees them
    shutil.rmtree(scratch, ignore_errors=True)  # those of a sweep that was killed
    with TrialsView(sweep, ledger, console) as view:
        recorder = TrialRecorder(ledger, proposals.number_of, opener, lambda trial: _steps(sweep, trial), view, nested)
        each: dict[str, float] = {"CPU": 1} if nested else {"CPU": resources.cpus, "GPU": resources.gpus}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable or run_trial, job=job), each),
            param_space=proposals.members() if population else {},
            tune_config=tune.TuneConfig(
                search_alg=None if population else proposals,
                scheduler=scheduler_of(sweep, ledger),
                num_samples=1 if population else count - len(ledger.ended),
                # A whole population lives at once and takes turns.
                max_concurrent_trials=None if population else resources.at_once,
                reuse_actors=not nested,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
                callbacks=[recorder],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        try:
            watch = WorkerStart(lambda: recorder.has_begun, console.print, own.logs if own else None)
            InThread(tuner.fit).result(meanwhile=_each_of(watch, _end_when_asked(ledger)))
        except BaseException:
            recorder.interrupted()
            raise
        recorder.finish()
    shutil.rmtree(scratch, ignore_errors=True)


def _each_of(*checks: Callable[[], None]) -> Callable[[], None]:
    def check() -> None:
        for each in checks:
            each()

    return check


def _end_when_asked(ledger: Ledger) -> Callable[[], None]:
    """A check that ends the sweep after a stop was asked for, once every trial that trains has its checkpoint."""
    from sweeps.trial import HELD, TUNE_ID

    stop_file = os.environ.get(STOP_FILE)
    deadline: float | None = None

    def check() -> None:
        nonlocal deadline
        if stop_file is None or not Path(stop_file).exists():
            return
        deadline = deadline or time.monotonic() + STOP_WITHIN_SECONDS
        training = [trial.folder for trial in ledger.waiting if (trial.folder / TUNE_ID).exists()]
        if all((folder / HELD).exists() for folder in training) or time.monotonic() > deadline:
            raise SystemExit(STOPPED)

    return check


def _with_cadence(runtime: RuntimeConfig, sweep: Sweep) -> RuntimeConfig:
    """A checkpoint at each measurement: what is reported can be gone on from."""
    return dataclasses.replace(runtime, checkpoint_every=sweep.search.measure_every)


def _steps(sweep: Sweep, trial: Trial) -> int:
    return sweep.training({key: value for key, value in trial.point.items() if key != "seed"}).steps
