"""Records what happens in a sweep, from Ray Tune's events: in the ledger, in MLflow, on the screen.

One thread of one process writes to MLflow, so sixteen trials at once burden the store no more than one, and a slow
store delays nobody: what happened meanwhile is written together. MLflow may be away: what it missed is written with
the trial's next event, and again at the end.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from ayf_core.errors import AyfError
from ayf_core.files import first_line, found_below
from pipelines.execution.workers import WORKERS_NOTE, release_workers
from pipelines.tracking.runs import StageRun
from pipelines.tracking.tags import POINT_TAG
from sweeps.ledger import FAILED, FINISHED, STOPPED, Ledger, Report, Trial, read_json
from sweeps.trial import FAILURE
from sweeps.view import TrialsView

STATUS_TAG = "ayf.trial.status"
RECORDED = "recorded"
"""A file in the folder of a trial whose ending MLflow has."""
SECONDS_TO_DIE = 5.0


class TrialRecorder(tune.Callback):
    """Follows one run of Ray Tune.

    Args:
        number_of: the number of one of Tune's trials.
        open_run: opens (or goes on with) the MLflow run of a trial.
        steps: training steps of a whole trial, by its point.
        nested: whether trials train on workers of their own.
    """

    def __init__(
        self,
        ledger: Ledger,
        number_of: Callable[[Any], int],
        open_run: Callable[[Trial], StageRun],
        steps: Callable[[Trial], int],
        view: TrialsView,
        nested: bool,
    ) -> None:
        self._ledger = ledger
        self._number_of = number_of
        self._open_run = open_run
        self._steps = steps
        self._metrics = view.metrics
        self._view = view
        self._nested = nested
        self._halted: dict[str, float] = {}
        self._runs: dict[int, StageRun] = {}
        self._began: dict[int, float] = {}
        self._behind: dict[int, str] = {}
        self._written: dict[int, Trial] = {}
        self._pending: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True, name="write-mlflow")
        self._writer.start()

    @property
    def has_begun(self) -> bool:
        """Whether any trial has started."""
        return bool(self._began)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks, to restore what this project resumes from the ledger."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = self._number_of(trial)
        first = number not in self._began
        self._began.setdefault(number, time.time())
        if trial.config["point"] != self._ledger.trials[number].point:
            self._ledger.move(number, trial.config["point"])
            self._queue(number)
        if first:
            self._queue(number)
            self._view.started(self._ledger.trials[number])

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        number = self._number_of(trial)
        if "step" not in result:
            return
        names = [name for name in self._metrics if name in result]
        report = Report(result["step"], {name: result[name] for name in names})
        if self._ledger.report(number, report):
            self._queue(number)
            self._view.reported(self._ledger.trials[number])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = self._number_of(trial)
        known = self._ledger.trials[number]
        failure = known.folder / FAILURE
        if failure.exists():
            self._end(number, FAILED, read_json(failure, {"message"})["message"])
        else:
            self._end(number, FINISHED if known.step >= self._steps(known) else STOPPED)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "its process died (out of memory?)").strip().splitlines()
        self._end(self._number_of(trial), FAILED, lines[-1])

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Workers of a trial that was stopped or paused are nobody's: the next trial would wait for them for ever."""
        if not self._nested:
            return
        for trial in trials:
            if trial.status not in ("PAUSED", "TERMINATED", "ERROR"):
                self._halted.pop(trial.trial_id, None)
                continue
            # Not at once: the trial's own controller, while it is dying, would replace workers that are taken from it.
            halted = self._halted.setdefault(trial.trial_id, time.monotonic())
            if time.monotonic() - halted > SECONDS_TO_DIE:
                release_trial(self._ledger.trials[self._number_of(trial)].folder)

    def finish(self) -> None:
        """Wait until MLflow knows everything. Raises AyfError if it does not take it."""
        self._pending.put(None)
        self._writer.join()
        for number in list(self._behind):
            self._write_trial(number)
        if self._behind:
            reason = next(iter(self._behind.values()))
            raise AyfError(
                f"the sweep is done, but MLflow did not take {len(self._behind)} of its trials ({reason}); "
                "run it again with --resume and they will be logged"
            )

    def interrupted(self) -> None:
        """Close the runs of trials that were training."""
        self._pending.put(None)
        self._writer.join(timeout=SECONDS_TO_DIE)
        for number, run in list(self._runs.items()):  # the writer may still wait for MLflow
            if self._ledger.trials[number].status is None:
                run.finish("KILLED")

    def _end(self, number: int, status: str, message: str = "") -> None:
        seconds = time.time() - self._began[number]
        trial = self._ledger.end(number, status, seconds, message)
        self._queue(number)
        self._view.ended(trial)

    def _queue(self, number: int) -> None:
        self._pending.put(number)

    def _write(self) -> None:
        while (number := self._pending.get()) is not None:
            if self._written.get(number) is not self._ledger.trials[number]:
                self._write_trial(number)

    def _write_trial(self, number: int) -> None:
        """Bring the trial's run up to what the ledger says; what it has already is not written twice."""
        trial = self._ledger.trials[number]
        try:
            run = self._runs.get(number)
            if run is None:
                run = self._runs[number] = self._open_run(trial)
            record_trial(run, trial)
            self._written[number] = trial
            self._behind.pop(number, None)
        except Exception as error:  # whatever a store or a network raises: training goes on
            self._behind[number] = first_line(error)


def release_trial(folder: Path) -> None:
    """Free the workers of a trial that no longer runs."""
    for note in found_below(folder, WORKERS_NOTE):
        release_workers(note.parent)


def record_trial(run: StageRun, trial: Trial) -> None:
    """Log a trial's measurements, and its ending if it has ended."""
    now = time.time()
    run.log_metrics(
        [
            {"step": report.step, "time": now, "metrics": {**report.metrics, "trained_steps": float(report.step)}}
            for report in trial.reports
        ]
    )
    if trial.status is not None:
        message = {"ayf.trial.message": trial.message} if trial.message else {}
        # A member of a population has changed its settings.
        run.set_tags({STATUS_TAG: trial.status, POINT_TAG: json.dumps(trial.point), **message})
        run.finish("FAILED" if trial.status == FAILED else "FINISHED")
        (trial.folder / RECORDED).touch()


def record_missed(ledger: Ledger, opened: Callable[[Trial], StageRun]) -> None:
    """A kill may have come between a trial's ending and MLflow's record of it."""
    for trial in ledger.ended:
        if not (trial.folder / RECORDED).exists():
            record_trial(opened(trial), trial)
