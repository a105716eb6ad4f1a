"""The answer of a sweep: which settings are best, whether that holds on other training seeds, what it cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.tracking.notes import sweep_note
from pipelines.tracking.runs import StageRun
from pipelines.tracking.tags import BEST_TAG
from sweeps.definition import Metric, Sweep
from sweeps.ledger import FINISHED, Ledger, Trial
from sweeps.space import Point
from sweeps.view import metric_words, point_words, ranked, trials_table


@dataclass(frozen=True)
class Confirmation:
    """Best and present settings trained with the same other seeds; values of the first metric, seed by seed."""

    metric: Metric
    seeds: tuple[int, ...]
    best: tuple[float, ...]
    present: tuple[float, ...]

    def sentence(self) -> str:
        best, present = mean_and_error(self.best), mean_and_error(self.present)
        gains = [one - other for one, other in zip(self.best, self.present, strict=True)]
        gain = mean_and_error(gains)
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"on training seeds {seeds}: {self.metric.name} {_with_error(best)} with the best settings, "
            f"{_with_error(present)} with the present ones; difference {_with_error(gain)} (± standard error)"
        )


@dataclass(frozen=True)
class Answer:
    """What a sweep found.

    Attributes:
        best: the finished trial best at the first metric; None if none finished.
        front: the finished trials that no other beats at every metric.
        steps, full_steps: training steps spent, and what all trials to their ends would have taken.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    front: tuple[Trial, ...]
    steps: int
    full_steps: int
    confirmation: Confirmation | None = None

    def is_present(self, sweep: Sweep, point: Point) -> bool:
        """Whether a point holds the present settings of params.yaml."""
        return all(point.get(key) == value for key, value in sweep.present.items())

    def confirmed(self, sweep: Sweep, ledger: Ledger) -> Answer:
        """The answer with what the confirming trials measured; as it is where they are not all finished."""
        values: dict[bool, dict[int, float]] = {True: {}, False: {}}
        for trial in ledger.trials.values():
            if trial.status == FINISHED:
                values[self.is_present(sweep, trial.point)][trial.point["seed"]] = trial.metrics[sweep.metric.name]
        seeds = tuple(sorted(values[True].keys() & values[False].keys()))
        if not seeds:
            return self
        best, present = (tuple(values[which][seed] for seed in seeds) for which in (False, True))
        return dataclasses.replace(self, confirmation=Confirmation(sweep.metric, seeds, best, present))

    def show(self, sweep: Sweep, console: Console) -> None:
        """The table of trials and the answer in words."""
        console.print(trials_table(sweep, self.trials))
        for line in self.lines(sweep):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def lines(self, sweep: Sweep) -> list[str]:
        """The answer in words, a line each."""
        share = self.steps / self.full_steps if self.full_steps else math.nan
        spent = f"{self.steps:,} training steps, {share:.0%} of what {len(self.trials)} whole trials take"
        if self.best is None:
            return [f"no trial finished; {spent}"]
        found = [f"{spent}"]
        if len(sweep.metrics) > 1:
            found += [f"not beaten: trial {t.number}, {metric_words(sweep.metrics, t)}" for t in self.front]
        words = "the present settings" if self.is_present(sweep, self.best.point) else point_words(self.best.point)
        found += [f"best: trial {self.best.number}, {metric_words(sweep.metrics, self.best)}: {words}"]
        if self.confirmation is not None:
            found += [self.confirmation.sentence()]
        return found


def answer_of(sweep: Sweep, ledger: Ledger) -> Answer:
    """The answer of a search that has ended, before it is confirmed."""
    trials = tuple(ledger.trials.values())
    finished = [trial for trial in trials if trial.status == FINISHED]
    order = ranked(sweep.metric, finished)
    full = sum(sweep.training({k: v for k, v in trial.point.items() if k != "seed"}).steps for trial in trials)
    return Answer(
        trials=trials,
        best=_best(sweep, order),
        front=tuple(pareto_front(sweep.metrics, finished)),
        steps=sum(trial.step for trial in trials),
        full_steps=full,
    )


def _best(sweep: Sweep, order: Sequence[Trial]) -> Trial | None:
    """The best trial; of a grid with training seeds, the first trial of the point that is best on average."""
    if not order or not sweep.search.training_seeds:
        return order[0] if order else None
    groups: dict[str, list[Trial]] = {}
    for trial in order:
        point = {key: value for key, value in trial.point.items() if key != "seed"}
        groups.setdefault(repr(point), []).append(trial)
    name, sign = sweep.metric.name, 1 if sweep.metric.mode == "min" else -1
    means = {key: sign * math.fsum(t.metrics[name] for t in group) / len(group) for key, group in groups.items()}
    return groups[min(means, key=lambda key: means[key])][0]


def pareto_front(metrics: Sequence[Metric], trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other is at least as good as in every metric and better in one."""

    def dominates(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        no_worse = all(not metric.better(other[metric.name], one[metric.name]) for metric in metrics)
        return no_worse and any(metric.better(one[metric.name], other[metric.name]) for metric in metrics)

    return [trial for trial in trials if not any(dominates(other.metrics, trial.metrics) for other in trials)]


def confirmation_points(sweep: Sweep, answer: Answer) -> list[Point]:
    """Best and present settings with each confirming seed, taking turns; none where the present ones are the best."""
    if not sweep.search.confirm_seeds or answer.best is None or answer.is_present(sweep, answer.best.point):
        return []
    settings = [{k: v for k, v in answer.best.point.items() if k != "seed"}, sweep.present]
    return [{**point, "seed": seed} for seed in sweep.search.confirm_seeds for point in settings]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; the error of one value is not known (NaN)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _with_error(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3g} ± {pair[1]:.2g}"


def record(answer: Answer, run: StageRun, sweep: Sweep, folder: Path) -> None:
    """Into the sweep's MLflow run: the best figures, the table of trials, the page with its drawings, a note."""
    from dashboards import frames, page

    trials = run.retry.call(lambda: frames.trials(run.uri, run.id))
    by_number = {row.trial: row for row in trials[trials["kind"] == "trial"].itertuples()}
    if answer.best is not None:
        run.log_values({**answer.best.metrics, "trained_steps": float(answer.steps)})
        run.set_tags({BEST_TAG: by_number[answer.best.number].run_id})
    if answer.confirmation is not None:
        confirmed = {"best": answer.confirmation.best, "current": answer.confirmation.present}
        for which, values in confirmed.items():
            run.log_values({f"{sweep.metric.name}/confirmed_{which}": mean_and_error(values)[0]})
    table, drawn = folder / "trials.csv", folder / "sweep.html"
    trials.to_csv(table, index=False)
    curves = run.retry.call(lambda: frames.trial_curves(run.uri, trials))
    page.write(drawn, page.sweep_page(trials, curves))
    for path in (table, drawn):
        run.log_artifact(path)
    rows = [
        {"name": by_number[trial.number].name, "run_id": by_number[trial.number].run_id, "metrics": trial.metrics}
        for trial in ranked(sweep.metric, answer.trials)[:NOTED_TRIALS]
    ]
    sentences = [sweep.search.question, *answer.lines(sweep), f"adopt the best: `ayf params adopt {sweep.name}`"]
    run.set_note(sweep_note(sentences, rows, run.experiment))


NOTED_TRIALS = 10
