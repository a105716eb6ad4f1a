"""What a person sees of a running sweep: one live table of its trials, or a line an event outside a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipelines.settings.words import literal
from pipelines.tracking.notes import short_keys
from sweeps.definition import Metric, Sweep
from sweeps.ledger import FAILED, FINISHED, STOPPED, Ledger, Trial
from sweeps.space import Point

_WORDS = {None: "running", FINISHED: "finished", STOPPED: "stopped early", FAILED: "failed"}
_ROWS = 20


class TrialsView:
    """Shows a ledger while it grows; a context manager."""

    def __init__(self, sweep: Sweep, ledger: Ledger, console: Console | None = None) -> None:
        self.metrics = [metric.name for metric in sweep.metrics]
        self._sweep = sweep
        self._ledger = ledger
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> TrialsView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, trial: Trial) -> None:
        self._say(f"trial {trial.number}: {point_words(trial.point) or 'present settings'}")

    def reported(self, trial: Trial) -> None:
        self._say(f"trial {trial.number}: step {trial.step:,}, {metric_words(self._sweep.metrics, trial)}")

    def ended(self, trial: Trial) -> None:
        tail = f": {trial.message}" if trial.message else f", {metric_words(self._sweep.metrics, trial)}"
        self._say(f"trial {trial.number}: {_WORDS[trial.status]} at step {trial.step:,}{tail}")

    def _say(self, line: str) -> None:
        if self._live is None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            self._live.update(trials_table(self._sweep, list(self._ledger.trials.values())), refresh=True)


def trials_table(sweep: Sweep, trials: Sequence[Trial]) -> Table:
    """The trials, best first among those that ended; the newest where there are too many to show."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = short_keys(list(sweep.space))
    for heading in ("trial", *(metric.name for metric in sweep.metrics), "step", ""):
        table.add_column(heading, no_wrap=True)
    for heading in names.values():
        table.add_column(heading, overflow="fold")
    shown = ranked(sweep.metric, trials)[:_ROWS]
    for trial in shown:
        figures = [_figure(trial, metric) for metric in sweep.metrics]
        values = [_short(trial.point.get(key)) for key in names]
        table.add_row(str(trial.number), *figures, f"{trial.step:,}", _WORDS[trial.status], *values)
    return table


def ranked(metric: Metric, trials: Sequence[Trial]) -> list[Trial]:
    """Finished trials from the best on, then running ones, then those stopped early, then failed ones."""
    order = {FINISHED: 0, None: 1, STOPPED: 2, FAILED: 3}
    sign = 1 if metric.mode == "min" else -1
    return sorted(trials, key=lambda t: (order[t.status], sign * t.metrics.get(metric.name, sign * float("inf"))))


def metric_words(metrics: Sequence[Metric], trial: Trial) -> str:
    """`fd/nfe_2 0.512`, each metric."""
    return ", ".join(f"{metric.name} {_figure(trial, metric)}" for metric in metrics)


def point_words(point: Point) -> str:
    """`learning_rate=0.002, scale_max=2.0`."""
    names = short_keys(list(point))
    return ", ".join(f"{names[key]}={_short(value)}" for key, value in point.items())


def _figure(trial: Trial, metric: Metric) -> str:
    value = trial.metrics.get(metric.name)
    return "" if value is None else f"{value:.4g}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else literal(value)
