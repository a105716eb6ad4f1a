"""Runs a sweep: checks, search, confirmation, answer. What `ayf sweep NAME` does.

A sweep lives in `runs/sweeps/NAME/NUMBER/`: its file and the params.yaml it began with, the ledger of its trials, their
folders. A resumed sweep reads all of it from there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ayf_core.errors import AyfError
from ayf_core.files import found_below
from ayf_core.training.context import STOP_FILE
from pipelines.durations import duration
from pipelines.execution.locks import only_writer
from pipelines.execution.own_ray import OwnRay, prepare_environment
from pipelines.execution.ray_connection import ray_for
from pipelines.execution.ray_train import InThread
from pipelines.execution.stopping import STOP_WITHIN_SECONDS, STOPPED
from pipelines.execution.worker_start import WorkerStart
from pipelines.project.declarations import check_deps, fingerprint, read_declarations
from pipelines.settings.documents import read_document
from pipelines.settings.experiment import PARAMS_FILE, load_config
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.lineage import git_tags, last_seconds
from pipelines.tracking.notes import run_name
from pipelines.tracking.runs import StageRun, open_run
from pipelines.tracking.tags import FIXED_TAG, KEY_TAG, POINT_TAG
from sweeps.answer import Answer, answer_of, confirmation_points, tell
from sweeps.definition import Sweep, read_sweep, sweep_names
from sweeps.ledger import Ledger, Trial, read_json, write_json
from sweeps.resources import Resources, longest_seconds, resources_of
from sweeps.view import TrialsView

SWEEP_FILE = "sweep.json"
RAY_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own files: the ledger has it all
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nor is its pickled state read again
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Place:
    """A sweep's folder and what lies in it."""

    root: Path
    folder: Path
    sweep: Sweep
    runtime: RuntimeConfig

    @property
    def search(self) -> Path:
        return self.folder / "trials"

    @property
    def confirmation(self) -> Path:
        return self.folder / "confirmation"

    @property
    def key(self) -> str:
        """What MLflow knows this sweep by, whatever is killed."""
        return f"sweep/{self.sweep.name}/{self.folder.name}/{read_json(self.folder / SWEEP_FILE, {'began'})['began']}"


def run_named(root: Path, name: str, runtime: RuntimeConfig, *, resume: bool = False, anew: bool = False) -> None:
    """What `ayf sweep NAME` does: a search of settings, or (kind: sampling) of how a trained student is sampled.

    Raises:
        AyfError: as `run_sweep`; no such sweep.
    """
    if _kind(root, name) != "sampling":
        run_sweep(root, name, runtime, resume=resume, anew=anew)
        return
    from sweeps.sampling_search import read_search
    from sweeps.tune_sampling import tune

    # It remembers what was measured by itself: to begin again is to resume.
    search = read_search(root / "sweeps" / f"{name}.yaml")
    tune(root, search.model, search, runtime=runtime)


def _kind(root: Path, name: str) -> str | None:
    path = root / "sweeps" / f"{name}.yaml"
    document = read_document(path, "see sweeps/") if path.is_file() else None
    return "sampling" if document is not None and "kind" in document.lines else None


def run_sweep(
    root: Path,
    name: str,
    runtime: RuntimeConfig,
    *,
    resume: bool = False,
    anew: bool = False,
    trainable: Callable[..., None] | None = None,
    console: Console | None = None,
) -> Answer:
    """Search, confirm, answer; everything in MLflow under one parent run.

    Args:
        name: of a file of `sweeps/`.
        resume: go on with the newest sweep of that name.
        anew: begin another although the newest has not ended; with `resume`, only where there is nothing to resume.
        trainable: stands for `sweeps.trial.run_trial` (benchmarks).

    Raises:
        AyfError: anything a person can mend, before work starts where it can be known before.
    """
    console = console or Console()
    runtime = trial_runtime(runtime)
    folder = root / "runs" / "sweeps" / name
    if resume and anew:
        newest = _newest(folder)
        resume = newest is not None and not (newest / "answer.json").exists()
    if not resume:
        described = _described(root, name)
        resources_of(described, runtime)
    with only_writer(folder, f"sweep {name}"):
        place = _resumed(root, folder, runtime) if resume else _begun(root, folder, described, runtime, anew)
        resources = resources_of(place.sweep, runtime)
        parent = _open_parent(place)
        status = "FAILED"
        try:
            console.print(_plan(place, resources, parent), highlight=False, markup=False, soft_wrap=True)
            answer = _searched_and_confirmed(place, resources, parent, trainable, console)
            tell(answer, parent, place.sweep, place.folder)
            write_json(place.folder / "answer.json", {"best": answer.best.number if answer.best else None})
            _tidy(place)
            answer.show(place.sweep, console)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            console.print(f"interrupted: `ayf sweep {name} --resume` goes on from here", highlight=False)
            raise
        finally:
            parent.finish(status)
    return answer


# ------------------------------------------------------------------------------------------------------ beginning


def _described(root: Path, name: str) -> Sweep:
    path = root / "sweeps" / f"{name}.yaml"
    if not path.is_file():
        from pipelines.settings.model import nearest

        guess = nearest(name, sweep_names(root))
        hint = f"did you mean {guess}?" if guess else f"there are {', '.join(sweep_names(root)) or 'none in sweeps/'}"
        raise AyfError(f"no sweep {name}: {hint}")
    sweep = read_sweep(root, path, load_config(root))
    _check_inputs(root, sweep)
    return sweep


def _check_inputs(root: Path, sweep: Sweep) -> None:
    """Everything that the chain does not make itself must be there."""
    declared = read_declarations(root)
    made = {out for stage in sweep.chain for out in stage.outputs}
    for stage in sweep.chain:
        given = dataclasses.replace(stage, deps=tuple(dep for dep in stage.deps if dep not in made))
        check_deps(root, given, declared)
    features = dataclasses.replace(sweep.chain[-1], deps=("models/features",))
    check_deps(root, features, declared)


def _inputs(root: Path, sweep: Sweep) -> dict[str, str]:
    """Fingerprints of what the trials share: other stages' outputs."""
    declared = read_declarations(root)
    outputs = {out for stage in declared.values() for out in stage.outputs}
    made = {out for stage in sweep.chain for out in stage.outputs}
    shared = {dep for stage in sweep.chain for dep in stage.deps if dep in outputs - made} | {"models/features"}
    return {dep: fingerprint(root / dep) for dep in sorted(shared)}


def _begun(root: Path, folder: Path, sweep: Sweep, runtime: RuntimeConfig, anew: bool) -> Place:
    newest = _newest(folder)
    if newest is not None and not anew and not (newest / "answer.json").exists():
        ledger = Ledger(newest / "trials")
        done = f"{len(ledger.ended)} trials done"
        raise AyfError(
            f"sweep {sweep.name} was interrupted ({done}): go on with `ayf sweep {sweep.name} --resume`, "
            "or begin another with --new"
        )
    number = int(newest.name) + 1 if newest else 1
    beside, place = folder / f".{number:03d}.partial", folder / f"{number:03d}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    shutil.copyfile(root / "sweeps" / f"{sweep.name}.yaml", beside / f"{sweep.name}.yaml")
    shutil.copyfile(root / PARAMS_FILE, beside / PARAMS_FILE)
    write_json(beside / SWEEP_FILE, {"began": time.time(), "inputs": _inputs(root, sweep)})
    beside.rename(place)
    return Place(root, place, sweep, runtime)


def _resumed(root: Path, folder: Path, runtime: RuntimeConfig) -> Place:
    place = _newest(folder)
    if place is None:
        raise AyfError(f"no sweep {folder.name} to resume: start it with `ayf sweep {folder.name}`")
    noted = read_json(place / SWEEP_FILE, {"began", "inputs"})
    for part in (f"{folder.name}.yaml", PARAMS_FILE):
        if not (place / part).is_file():
            raise AyfError(f"sweep folder damaged: {place / part} is missing: restore it, or begin another with --new")
    sweep = read_sweep(root, place / f"{folder.name}.yaml", load_config(place))
    _check_inputs(root, sweep)
    for dep, digest in _inputs(root, sweep).items():
        if noted["inputs"].get(dep) != digest:
            raise AyfError(
                f"{dep} is not what the sweep {folder.name} began with: bring it back (git checkout, dvc checkout), "
                "or begin another with --new"
            )
    return Place(root, place, sweep, runtime)


def _newest(folder: Path) -> Path | None:
    found = [place for place in folder.iterdir() if place.name.isdigit() and place.is_dir()] if folder.is_dir() else []
    return max(found, key=lambda place: int(place.name), default=None)


def trial_runtime(runtime: RuntimeConfig) -> RuntimeConfig:
    """Where a trial trains: one worker in the trial's own process, several as workers of Ray Train."""
    return dataclasses.replace(
        runtime,
        mode="inline" if runtime.workers == 1 else "ray",
        threads_per_worker=runtime.trial_threads,
        system_metrics=False,
    )


def _plan(place: Place, resources: Resources, parent: StageRun) -> str:
    sweep, ledger = place.sweep, Ledger(place.search)
    stages = [stage.name for stage in sweep.chain]
    known = parent.retry.call(lambda: last_seconds(stages, parent.uri))
    seconds = longest_seconds(sweep, known, resources.at_once)
    if seconds is None:
        time_words = "no stage of the chain has finished here yet, so how long it takes is unknown"
    else:
        time_words = (
            f"about {duration(seconds, in_minutes=True)} if none stops early, by the last run of {sweep.chain[-1].name}"
        )
    done = f", {len(ledger.ended)} of them done" if ledger.ended else ""
    return f"sweep {sweep.name}: {sweep.trials} trials{done}; {resources.sentence()}; {time_words}"


# -------------------------------------------------------------------------------------------------------- running


def _searched_and_confirmed(
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
        run(place, search, source_of(sweep), sweep.trials, _trial_opener(place, parent))
        answer = answer_of(sweep, search)
        points = confirmation_points(sweep, answer)
        confirmation = Ledger(place.confirmation)
        if points:
            console.print(f"confirming on training seeds {sweep.search.confirm_seeds}", highlight=False)
            confirming = dataclasses.replace(
                place, sweep=dataclasses.replace(sweep, search=dataclasses.replace(sweep.search, scheduler="none"))
            )
            opener = _confirmation_opener(confirming, parent, answer)
            run(confirming, confirmation, listed(points), len(points), opener)
    return answer.confirmed(sweep, confirmation)


def _enter_ray(stack: ExitStack, resources: Resources, runtime: RuntimeConfig, console: Console) -> OwnRay | None:
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

    from sweeps.search import Proposals, scheduler_of
    from sweeps.recorder import TrialRecorder, record_missed
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


# --------------------------------------------------------------------------------------------------------- MLflow


def _open_parent(place: Place) -> StageRun:
    sweep = place.sweep
    run = open_run(
        " + ".join(stage.name for stage in sweep.chain),
        run_name=f"sweep {sweep.name} {int(place.folder.name)}",
        root=place.root,
        scratch=place.folder,
        params={"trials": sweep.trials, "search": sweep.search.search, "scheduler": sweep.search.scheduler},
        tags={
            KEY_TAG: place.key,
            "ayf.sweep": sweep.name,
            "ayf.metric": ",".join(metric.name for metric in sweep.metrics),
            "ayf.mode": ",".join(metric.mode for metric in sweep.metrics),
        },
        runtime=place.runtime,
        kind="sweep",
    )
    for part, name in ((f"{sweep.name}.yaml", "sweep.yaml"), (PARAMS_FILE, "params.yaml")):
        run.log_text(name, (place.folder / part).read_text())
    return run


def _trial_opener(place: Place, parent: StageRun) -> Callable[[Trial], StageRun]:
    code = git_tags(place.root)

    def opened(trial: Trial) -> StageRun:
        name = run_name(f"trial {trial.number}", _differing(place.sweep, trial))
        tags = {"ayf.trial": str(trial.number), "ayf.trial.status": "running"}
        return _open_child(place, parent, trial, name, "trial", {**code, **tags})

    return opened


def _confirmation_opener(place: Place, parent: StageRun, answer: Answer) -> Callable[[Trial], StageRun]:
    code = git_tags(place.root)

    def opened(trial: Trial) -> StageRun:
        which = "current" if answer.is_present(place.sweep, trial.point) else "best"
        confirms = {"ayf.trial": str(answer.best.number)} if which == "best" and answer.best else {}
        name = f"confirm {which} settings, seed {trial.point['seed']}"
        return _open_child(place, parent, trial, name, "confirmation", {**code, "ayf.settings": which, **confirms})

    return opened


def _open_child(place: Place, parent: StageRun, trial: Trial, name: str, kind: str, tags: dict[str, str]) -> StageRun:
    return open_run(
        place.sweep.chain[-1].name,
        run_name=name,
        root=place.root,
        scratch=trial.folder,
        params=trial.point,
        tags={
            KEY_TAG: f"{place.key}/{kind}/{trial.number}",
            "ayf.sweep": place.sweep.name,
            POINT_TAG: json.dumps(trial.point),
            FIXED_TAG: json.dumps(place.sweep.fixed),
            **tags,
        },
        runtime=place.runtime,
        kind=kind,
        parent=parent.id,
        code={},
    )


def _differing(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    present = sweep.present
    return {key: value for key, value in trial.point.items() if present.get(key, object()) != value}


# ------------------------------------------------------------------------------------------------------- tidying


def _tidy(place: Place) -> None:
    """Nobody goes on from a checkpoint of a sweep that has ended; measurements and finished models stay."""
    for checkpoints in found_below(place.folder, "checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
