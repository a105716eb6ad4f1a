"""Runs a sweep: checks, search, confirmation, answer. What `ayf sweep NAME` does.

A sweep lives in `runs/sweeps/NAME/NUMBER/`: its file and the params.yaml it began with, the ledger of its trials, their
folders. A resumed sweep reads all of it from there.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ayf_core.files import found_below
from pipelines.durations import duration
from pipelines.execution.locks import only_writer
from pipelines.settings.runtime import RuntimeConfig
from pipelines.settings.yaml_file import read_yaml
from pipelines.tracking.lineage import last_seconds
from pipelines.tracking.runs import StageRun
from sweeps.answer import Answer, record
from sweeps.ledger import Ledger, write_json
from sweeps.mlflow_runs import open_parent
from sweeps.place import Place, begun, described_sweep, newest_place, resumed
from sweeps.ray_tune import searched_and_confirmed
from sweeps.resources import Resources, longest_seconds, resources_of


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
    document = read_yaml(path, "see sweeps/") if path.is_file() else None
    return "sampling" if document is not None and "kind" in document.content else None


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
        newest = newest_place(folder)
        resume = newest is not None and not (newest / "answer.json").exists()
    if not resume:
        described = described_sweep(root, name)
        resources_of(described, runtime)
    with only_writer(folder, f"sweep {name}"):
        place = resumed(root, folder, runtime) if resume else begun(root, folder, described, runtime, anew)
        resources = resources_of(place.sweep, runtime)
        parent = open_parent(place)
        status = "FAILED"
        try:
            console.print(_plan(place, resources, parent), highlight=False, markup=False, soft_wrap=True)
            answer = searched_and_confirmed(place, resources, parent, trainable, console)
            record(answer, parent, place.sweep, place.folder)
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


def _tidy(place: Place) -> None:
    """Nobody goes on from a checkpoint of a sweep that has ended; measurements and finished models stay."""
    for checkpoints in found_below(place.folder, "checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
