"""What proposes the points of a sweep, and what stops or changes weak trials: Optuna and Ray Tune's schedulers.

The proposals go through the ledger: a point is noted there before its trial starts, and a resumed sweep first hands out
the points that were proposed and have not ended.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from scipy.stats import qmc

from ayf_core.files import write_whole
from sweeps.definition import Sweep
from sweeps.ledger import FAILED, FINISHED, Ledger, Trial
from sweeps.space import Choice, Dimension, Point, Range, extremes
from sweeps.trial import TUNE_ID

optuna.logging.set_verbosity(optuna.logging.WARNING)


Source = Callable[[Ledger, int], Point]
"""Proposes the point of the trial with a number, from the ledger alone: there is no other state to lose."""


class Proposals(Searcher):
    """Ray Tune's searcher: points from the ledger, then new ones from a source, until there are enough.

    A population takes no searcher: its members are all there from the first moment (`members`).

    Args:
        ledger: where points are noted.
        source: proposes new ones.
        count: of trials in all, those that ended earlier included.
        until: the moment (`time.monotonic`) after which none is proposed.

    Attributes:
        numbers: of the trials that Tune knows, by Tune's ids.
    """

    def __init__(self, ledger: Ledger, source: Source, count: int, until: float = math.inf) -> None:
        super().__init__()
        self.ledger = ledger
        self.numbers: dict[str, int] = {}
        self._source = source
        self._count = count
        self._until = until
        self._waiting = ledger.waiting

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher, to restore what this project resumes from the ledger."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        trial = self._next()
        if trial is None:
            return Searcher.FINISHED
        self._enrol(trial_id, trial.number)
        return {"point": trial.point}

    def members(self) -> dict[str, Any]:
        """Ray Tune's space of a whole population: every trial that has not ended, and those still to propose."""
        points = {trial.number: trial.point for trial in iter(self._next, None)}
        return {
            "number": tune.grid_search(list(points)),
            "point": tune.sample_from(partial(_point_of, points)),
        }

    def number_of(self, trial: Any) -> int:
        """The number of one of Tune's trials. That of a member counts where it first starts: a copy copies it too."""
        if trial.trial_id not in self.numbers:
            self._enrol(trial.trial_id, trial.config["number"])
        return self.numbers[trial.trial_id]

    def _next(self) -> Trial | None:
        if self._waiting:
            return self._waiting.pop(0)
        if len(self.ledger.trials) >= self._count or time.monotonic() > self._until:
            return None
        number = max(self.ledger.trials, default=0) + 1
        return self.ledger.propose(self._source(self.ledger, number))

    def _enrol(self, trial_id: str, number: int) -> None:
        self.numbers[trial_id] = number
        place = self.ledger.trials[number].folder / TUNE_ID
        write_whole(place, trial_id)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing to learn here: the next proposal reads the ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save, but Tune renames the file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def _point_of(points: Mapping[int, Point], spec: Any) -> Point:
    return dict(points[spec.config["number"]])


# ----------------------------------------------------------------------------------------------------- the points


def source_of(sweep: Sweep) -> Source:
    """What proposes the points of a sweep. Other than a grid, it begins with the present settings."""
    if sweep.search.search == "grid":
        return listed(sweep.points())
    propose = optuna_point if sweep.search.search == "optuna" else random_point
    return lambda ledger, number: sweep.present if number == 1 else propose(sweep, ledger, number)


def listed(points: list[Point]) -> Source:
    """Points in a fixed order, as those of a grid."""
    return lambda ledger, number: points[number - 1]


def random_point(sweep: Sweep, ledger: Ledger, number: int) -> Point:
    """The point with this number of a scrambled Halton sequence: random, yet without clumps; a function of the seed."""
    sequence = qmc.Halton(len(sweep.space), rng=np.random.default_rng(sweep.search.seed))
    shares = sequence.random(number)[-1]
    return {
        key: dimension.at(float(share)) for (key, dimension), share in zip(sweep.space.items(), shares, strict=True)
    }


def optuna_point(sweep: Sweep, ledger: Ledger, number: int) -> Point:
    """What Optuna's TPE proposes after the trials of the ledger; for several metrics its multi-objective form."""
    if number <= STARTUP_TRIALS:
        return random_point(sweep, ledger, number)
    directions = [_DIRECTIONS[metric.mode] for metric in sweep.metrics]
    seed = random.Random(f"{sweep.search.seed}/{number}").getrandbits(31)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)
    study = optuna.create_study(directions=directions, sampler=sampler)
    space = {key: distribution(dimension) for key, dimension in sweep.space.items()}
    for trial in ledger.trials.values():
        known = _known(sweep, trial, space)
        if known is not None:
            study.add_trial(known)
    asked = study.ask(space).params
    return {key: _value(dimension, asked[key]) for key, dimension in sweep.space.items()}


_DIRECTIONS = {"min": optuna.study.StudyDirection.MINIMIZE, "max": optuna.study.StudyDirection.MAXIMIZE}
STARTUP_TRIALS = 5
"""So many points, the present settings among them, come before TPE models them."""


def distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """Optuna's form of a dimension; a choice by its index, for its values may be lists."""
    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
    if dimension.whole:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _value(dimension: Dimension, asked: Any) -> Any:
    return dimension.values[asked] if isinstance(dimension, Choice) else dimension.neat(asked)


def _known(
    sweep: Sweep, trial: Trial, space: Mapping[str, optuna.distributions.BaseDistribution]
) -> optuna.trial.FrozenTrial | None:
    """A trial of the ledger as Optuna knows trials; None for one outside the space, which tells it nothing."""
    states = optuna.trial.TrialState
    params = {}
    for key, dimension in sweep.space.items():
        value = trial.point[key]
        if not dimension.contains(value):
            return None
        params[key] = dimension.values.index(value) if isinstance(dimension, Choice) else value
    values = [trial.metrics[metric.name] for metric in sweep.metrics] if trial.reports else None
    state = {FINISHED: states.COMPLETE, FAILED: states.FAIL, None: states.RUNNING}.get(trial.status, states.PRUNED)
    steps = {report.step: report.metrics[sweep.metric.name] for report in trial.reports}
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions=dict(space),
        values=values if state == states.COMPLETE else None,
        intermediate_values=steps if len(sweep.metrics) == 1 else None,
    )


# -------------------------------------------------------------------------------------------------- the scheduler


def scheduler_of(sweep: Sweep, ledger: Ledger) -> TrialScheduler:
    """Ray Tune's scheduler for a sweep; what the ledger's ended trials reported is known to it."""
    search = sweep.search
    if search.scheduler == "asha":
        return _knowing(_asha(sweep), ledger)
    if search.scheduler == "population":
        return PopulationBasedTraining(
            time_attr="step",
            metric=sweep.metric.name,
            mode=sweep.metric.mode,
            perturbation_interval=search.measure_every,
            quantile_fraction=search.exploit_share or 0.25,
            hyperparam_mutations={"point": {key: _mutation(dimension) for key, dimension in sweep.space.items()}},
            custom_explore_fn=partial(_clamped, sweep.space),
            log_config=False,
        )
    return FIFOScheduler()


def _asha(sweep: Sweep) -> AsyncHyperBandScheduler:
    search = sweep.search
    longest = max(sweep.training(point).steps for point in [{}, *extremes(sweep.space)])
    return AsyncHyperBandScheduler(
        time_attr="step",
        metric=sweep.metric.name,
        mode=sweep.metric.mode,
        grace_period=search.asha_first or search.measure_every,
        reduction_factor=search.asha_factor or 3,
        max_t=longest,
        stop_last_trials=False,
    )


def _knowing(scheduler: TrialScheduler, ledger: Ledger) -> TrialScheduler:
    """Let a scheduler see again what trials reported before a resume: later ones are held to the same rungs."""
    for trial in ledger.ended:
        if not trial.reports:
            continue
        seen = cast(Any, SimpleNamespace(trial_id=f"ended-{trial.number}"))
        scheduler.on_trial_add(cast(Any, None), seen)
        for report in trial.reports:
            scheduler.on_trial_result(cast(Any, None), seen, {"step": report.step, **report.metrics})
    return scheduler


def _mutation(dimension: Dimension) -> Any:
    """How a population draws a setting anew; a number it also multiplies by 0.8 or 1.2."""
    return list(dimension.values) if isinstance(dimension, Choice) else partial(_drawn, dimension)


def _drawn(dimension: Range) -> float:
    return dimension.at(random.random())


def _clamped(space: Mapping[str, Dimension], config: dict[str, Any]) -> dict[str, Any]:
    """A multiplied number stays in its range."""
    for key, dimension in space.items():
        if isinstance(dimension, Range):
            config["point"][key] = dimension.neat(config["point"][key])
    return config
