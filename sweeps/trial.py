"""One trial: the stages of the pipeline with the trial's settings, in the trial's own process or on workers of its own.

A trial writes into its folder alone: measurements as lines of `metrics.jsonl`, checkpoints beside them. It reports a
measurement to Ray Tune only once the checkpoint of that step is whole, so whatever the scheduler decides, or a kill
does, finds both. The checkpoint that Tune is handed is a pointer: the place of the real one, which nobody copies in
vain.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune

from ayf_core.errors import AyfError, Preempted
from ayf_core.files import inside, only_one_process, read_json
from ayf_core.training.checkpoint_folder import (
    CHECKPOINTS_KEPT,
    checkpoint_name,
    checkpoint_step,
    complete_checkpoints,
    write_checkpoint,
)
from ayf_core.training.checkpoints import State
from ayf_core.training.context import LocalContext, read_metrics
from pipelines.execution.ray_train import run_training, torch_device
from pipelines.execution.run import body_of, outcome
from pipelines.execution.stage import Stage
from pipelines.execution.workers import release_workers
from pipelines.settings.experiment import Config
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.run_record import NoRecord
from sweeps.definition import Sweep
from sweeps.ledger import write_json
from sweeps.quality import QualityWatch
from sweeps.space import Point

POINTER = "pointer.json"
FAILURE = "failure.json"
HELD = "held"
"""Is there when a trial that was asked to stop has its checkpoint."""
TUNE_ID = "tune_id"
ENROLMENT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What every trial of a sweep is told; plain data that travels to Ray's processes.

    Attributes:
        root: the project.
        runtime: where a trial trains: in its own process (`inline`) or on workers (`ray`).
        trials: the folder in which each trial has its own.
        shared: folder of what several trials need and one makes.
    """

    root: Path
    sweep: Sweep
    runtime: RuntimeConfig
    trials: Path
    shared: Path

    @property
    def keeps_every_checkpoint(self) -> bool:
        """Another member of the population may copy any of them later."""
        return self.sweep.search.scheduler == "population"


def run_trial(settings: dict[str, Any], job: TrialJob) -> None:
    """Ray Tune's trainable: train and report, from wherever this trial (or the one it now copies) had come to.

    Args:
        settings: `point`, the searched settings.
    """
    folder = folder_of(job.trials, tune.get_context().get_trial_id())
    for note in (FAILURE, HELD):  # of an attempt before a resume
        (folder / note).unlink(missing_ok=True)
    try:
        train(settings["point"], folder, job, Reporter(folder, job))
    except Preempted:
        # The driver ends once all have stopped, and this is no result: Tune must not learn of one.
        (folder / HELD).touch()
        threading.Event().wait()
    except AyfError as error:
        # To return is to end: the same settings would fail the same way again.
        write_json(folder / FAILURE, {"message": str(error)})


def folder_of(trials: Path, tune_id: str) -> Path:
    """The folder of the trial that Tune knows by `tune_id`: a copied member of a population keeps its own."""
    deadline = time.monotonic() + ENROLMENT_SECONDS
    while time.monotonic() < deadline:
        for place in trials.iterdir():
            note = place / TUNE_ID
            if note.exists() and note.read_text() == tune_id:
                return place
        time.sleep(0.1)  # the driver notes it when it learns that the trial has started
    raise AyfError(f"sweep folder damaged: {trials} has no trial that Ray Tune calls {tune_id}")


def train(point: Point, folder: Path, job: TrialJob, reporter: Reporter) -> None:
    """The chain of stages with the settings of `point`; the last one is measured while it trains.

    Raises:
        AyfError: what a stage cannot do with these settings.
    """
    config = job.sweep.trial_config({key: value for key, value in point.items() if key != "seed"})
    trained = replace(config, seed=point.get("seed", config.seed))
    made: dict[str, Path] = {}
    for declaration in job.sweep.chain[:-1]:
        stage = Stage(job.root, declaration, job.runtime, settings=trained.to_dict(), instead=made, runs=job.shared)
        stage.run = NoRecord()  # type: ignore[assignment]  # all that a stage's body calls
        with _one_at_a_time(stage.scratch):
            outcome(stage, trained, body_of(declaration.base))
        made |= {out: stage.made(out) for out in declaration.outputs}
    last = job.sweep.chain[-1]
    stage = Stage(job.root, last, job.runtime, settings=trained.to_dict(), instead=made, runs=folder)
    stage.run = NoRecord()  # type: ignore[assignment]  # all that a stage's body calls
    stage.watch = _watch(config, made, job)
    stage.launch = _launcher(reporter, job)
    reporter.take_over(stage.training_folder())
    outcome(stage, trained, body_of(last.base))
    reporter.catch_up(stage.training_folder(), math.inf)


def _watch(config: Config, made: Mapping[str, Path], job: TrialJob) -> QualityWatch:
    features = "models/features"
    return QualityWatch(
        config=config,
        features=made.get(features, job.root / features),
        metrics=job.sweep.metrics,
        every=job.sweep.search.measure_every,
        guidance_scale=job.sweep.search.guidance_scale,
    )


def _launcher(reporter: Reporter, job: TrialJob) -> Callable[..., dict]:
    """How a stage of a trial runs its training function; the counterpart of `run_training`."""

    def in_this_process(train: Callable, config: dict, *, folder: Path, runtime: RuntimeConfig, **_: Any) -> dict:
        torch.set_num_threads(job.runtime.trial_threads)
        return train(config, TrialContext(folder, torch_device(runtime), reporter, job.keeps_every_checkpoint))

    def on_workers(train: Callable, config: dict, *, folder: Path, name: str, runtime: RuntimeConfig, **_: Any) -> dict:
        def follow(records: list[dict]) -> None:
            found = complete_checkpoints(folder / "checkpoints")
            reporter.catch_up(folder, checkpoint_step(found[-1]) if found else 0)

        release_workers(folder)  # those of an attempt whose process died
        return run_training(
            train,
            config,
            folder=folder,
            name=name,
            runtime=runtime,
            on_log=follow,
            keep_all=job.keeps_every_checkpoint,
        )

    return in_this_process if job.runtime.workers == 1 else on_workers


class TrialContext(LocalContext):
    """A single process that trains one trial: reports what was measured as soon as its checkpoint is whole."""

    def __init__(self, folder: Path, device: torch.device, reporter: Reporter, keeps_all: bool) -> None:
        super().__init__(folder, device, keep=None if keeps_all else CHECKPOINTS_KEPT)
        self._reporter = reporter
        resumed = self.latest_checkpoint()
        if resumed is not None:
            reporter.catch_up(self.folder, checkpoint_step(resumed))

    def save_checkpoint(self, step: int, state: State) -> None:
        super().save_checkpoint(step, state)
        self.wait()
        self._reporter.catch_up(self.folder, step)


class Reporter:
    """Hands measurements on to Ray Tune in the order of their steps, each once; Tune may end this process there."""

    def __init__(self, folder: Path, job: TrialJob) -> None:
        self._folder = folder
        self._trials = job.trials
        self._names = [metric.name for metric in job.sweep.metrics]
        self._population = job.keeps_every_checkpoint
        self._reported = 0

    def take_over(self, training: Path) -> None:
        """Copy the checkpoint that Tune points to, if it is another trial's: an exploit."""
        handed = tune.get_checkpoint()
        if handed is not None:
            with handed.as_directory() as place:
                donor, step = self._pointed_to(Path(place) / POINTER)
            if donor != training:
                self._copy(donor, step, training)
            self._reported = step
        elif self._population:
            # A resumed population exploits by what its members reach now, not by their past.
            found = complete_checkpoints(training / "checkpoints")
            self._reported = checkpoint_step(found[-1]) - 1 if found else 0

    def _pointed_to(self, pointer: Path) -> tuple[Path, int]:
        """The training folder, of one of this sweep's trials, and the step that a pointer names.

        Raises:
            AyfError: it is no pointer, or names a folder elsewhere.
        """
        try:
            content = read_json(pointer)
            donor, step = os.path.relpath(content["training"], self._trials), int(content["step"])
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise AyfError(f"{pointer} points to no checkpoint ({error}): begin the sweep again with --new") from None
        return inside(self._trials, donor, POINTER), step

    def catch_up(self, training: Path, step: float) -> None:
        """Report what `metrics.jsonl` of a training folder holds up to a step and was not reported yet."""
        path = training / "metrics.jsonl"
        for _, record in read_metrics(path) if path.exists() else []:
            measured = {name: record["metrics"][name] for name in self._names if name in record["metrics"]}
            if len(measured) == len(self._names) and self._reported < record["step"] <= step:
                self._reported = record["step"]
                self._report(record["step"], measured, training)

    def _copy(self, donor: Path, step: int, training: Path) -> None:
        name = checkpoint_name(step)
        # The whole scratch: with settings it had once before, a member would find that training finished.
        shutil.rmtree(training.parent, ignore_errors=True)
        write_checkpoint(training / "checkpoints", step, partial(_copy_tree, donor / "checkpoints" / name))
        if (donor / "ema").exists():
            # The donor may be writing another.
            shutil.copytree(donor / "ema", training / "ema", ignore=shutil.ignore_patterns("*.partial"))
        copies = self._folder / "copies.jsonl"
        with copies.open("a") as file:
            file.write(json.dumps({"step": step, "from": str(donor)}) + "\n")

    def _report(self, step: int, measured: Mapping[str, float], training: Path) -> None:
        metrics = {"step": step, **measured}
        if not (training / "checkpoints" / checkpoint_name(step)).exists():
            tune.report(metrics)  # of the last step no checkpoint is kept
            return
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / POINTER).write_text(json.dumps({"training": str(training), "step": step}))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(place))


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


@contextmanager
def _one_at_a_time(scratch: Path) -> Iterator[None]:
    """Trials that need the same model wait for the one that makes it."""
    scratch.mkdir(parents=True, exist_ok=True)
    with only_one_process(scratch / "lock"):
        yield
