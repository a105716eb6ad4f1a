"""The search for sampling settings of one number of steps: candidates on some draws, the best confirmed on others.

Pure but for the `measure` it is given: what is sampled, and how it is measured, is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from ayf_core.errors import AyfError
from ayf_core.evaluation.intervals import Interval, confidence_interval
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.sampling.settings import SamplingSettings
from ayf_core.settings import setting
from pipelines.settings import tree
from pipelines.settings.yaml_file import read_typed

optuna.logging.set_verbosity(optuna.logging.WARNING)

Measure = Callable[[SamplingSettings, int], float]
"""The metric of samples drawn with these settings and this seed."""

_SELECTION, _HELD_OUT = 100, 500
"""Where the seeds of either kind begin: apart from each other and from the evaluation's, which begin at 0."""
_LADDER = 5
"""Guidance scales that the uniform deterministic chain is tried with before anything else is."""


@dataclass
class SamplingSearch:
    """The settings of sweeps/sampling.yaml. Uniform, deterministic and least guided is always within the space."""

    kind: str = setting("what is searched", choices=("sampling",))
    model: str = setting("the student whose sampling is searched")
    metric: str | None = setting("a measure of `evaluate`; null = the headline distance", default=None)
    steps: list[int] = setting("numbers of steps, each searched by itself", at_least=1)
    candidates: int = setting("settings tried for each number of steps", at_least=1)
    selection_seeds: int = setting("draws behind each candidate", at_least=1, at_most=_HELD_OUT - _SELECTION)
    held_out_seeds: int = setting("other draws, which confirm the best", at_least=2, at_most=500)
    seed: int = setting("of the proposals", at_least=0)
    shift: list[float] | None = setting("least and largest shift of shifted grids; null = none", above=0.0)
    rho: list[float] | None = setting("least and largest rho of polynomial grids; null = none", above=0.0)
    largest_gamma: float = setting("γ is searched from 0 to here", at_least=0.0, at_most=1.0)
    largest_guidance_scale: float | None = setting("λ is searched from the least learnt to here", default=None)

    def checked(self, where: str) -> SamplingSearch:
        """Itself, if its values are in range and agree.

        Raises:
            AyfError: they are not; `where` is named.
        """
        problems = tree.problems_of(SamplingSearch, tree.plain(SamplingSearch, self))
        for name, ends in (("shift", self.shift), ("rho", self.rho)):
            if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
                problems.append(f"{name} = {ends} must be [least, largest], or null for none of these grids")
        if problems:
            raise AyfError(f"{where}: {problems[0]}")
        return self


def read_search(path: Path) -> SamplingSearch:
    """The search of a YAML file.

    Raises:
        AyfError: it is missing, or a setting is unknown, missing or out of range.
    """
    search, _ = read_typed(path, SamplingSearch, "name a file such as sweeps/sampling.yaml")
    return search.checked(path.name)


@dataclass(frozen=True)
class Candidate:
    """Settings and the metric of each of their draws."""

    settings: SamplingSettings
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)


@dataclass(frozen=True)
class Verdict:
    """What the held-out draws say of the best settings for a number of steps.

    Attributes:
        untuned: uniform, deterministic, least guided.
        guided: uniform and deterministic with the best λ: what grid and γ have to beat.
        best: what the search found.
        candidates: all that were tried, on the draws they were chosen by, the untuned first.
        gain: of the best over the untuned, paired by draw; above 0 is better.
        gain_over_guided: of the best over the guided, likewise.
        held_out: the seeds of the draws that these were measured on.
    """

    steps: int
    untuned: Candidate
    guided: Candidate
    best: Candidate
    candidates: tuple[Candidate, ...]
    gain: Interval
    gain_over_guided: Interval
    held_out: range

    @property
    def confirmed(self) -> bool:
        """Whether the whole interval of the gain is above 0."""
        return self.gain.low is not None and self.gain.low > 0

    def record(self, metric: str) -> dict[str, Any]:
        """What is stored with the model."""
        return self.best.settings.to_dict() | {
            "metric": metric,
            "before": self.untuned.mean,
            "after": self.best.mean,
            "gain": self.gain.mean,
            "gain_low": self.gain.low,
            "gain_high": self.gain.high,
            "seeds": self.gain.count,
        }


def tuned(
    measure: Measure,
    steps: int,
    search: SamplingSearch,
    scales: GuidanceRange | None,
    mode: str,
    tried: Callable[[Candidate], None] = lambda candidate: None,
) -> Verdict:
    """Search the settings for a number of steps and confirm the best.

    The same values measured give the same proposals: with a `measure` that remembers, an interrupted search goes on.

    Args:
        scales: least and largest λ, None of a model that takes none.
        mode: `min` or `max`, which way the metric is better.
        tried: told of each candidate.
    """
    candidates = []
    for candidate in _candidates(measure, steps, search, scales, mode):
        candidates.append(candidate)
        tried(candidate)
    best = _best(candidates, mode)
    plain = [c for c in candidates if c.settings.grid == "uniform" and c.settings.gamma == 0]
    if best not in plain:
        plain.append(_measured(measure, SamplingSettings(guidance_scale=best.settings.guidance_scale), search))
        candidates.append(plain[-1])
    guided = _best(plain, mode)
    seeds = range(_HELD_OUT, _HELD_OUT + search.held_out_seeds)
    held_out = {
        candidate.settings: Candidate(candidate.settings, tuple(measure(candidate.settings, seed) for seed in seeds))
        for candidate in (candidates[0], guided, best)
    }
    before, alone, after = (held_out[candidate.settings] for candidate in (candidates[0], guided, best))
    gain, over_guided = _gain(before, after, mode), _gain(alone, after, mode)
    return Verdict(steps, before, alone, after, tuple(candidates), gain, over_guided, seeds)


def _candidates(
    measure: Measure, steps: int, search: SamplingSearch, scales: GuidanceRange | None, mode: str
) -> Iterator[Candidate]:
    """The untuned settings, then a ladder of λ, then what Optuna proposes (TPE, arXiv 1907.10902)."""
    # Nothing of the sampler may depend on how many candidates there will be: a longer search begins like a shorter one.
    sampler = optuna.samplers.TPESampler(seed=search.seed + steps)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize", sampler=sampler)
    for scale in _ladder(scales):
        study.enqueue_trial({"grid": "uniform", "renoise": False} | ({} if scale is None else {"scale": scale}))
    # One step has neither a grid nor anything to renoise; without λ nothing is left to search.
    count = 1 if steps == 1 and scales is None else search.candidates
    for _ in range(count):
        trial = study.ask()
        candidate = _measured(measure, _proposed(trial, steps, search, scales), search)
        study.tell(trial, candidate.mean)
        yield candidate


def _ladder(scales: GuidanceRange | None) -> list[float | None]:
    if scales is None:
        return [None]
    least, reach = scales.minimum, scales.maximum - scales.minimum
    return [least + reach * rung / (_LADDER - 1) for rung in range(_LADDER if reach > 0 else 1)]


def _proposed(
    trial: optuna.Trial, steps: int, search: SamplingSearch, scales: GuidanceRange | None
) -> SamplingSettings:
    scale = None if scales is None else trial.suggest_float("scale", scales.minimum, scales.maximum)
    if steps == 1:
        return SamplingSettings(guidance_scale=scale)
    ends = {"shifted": search.shift, "polynomial": search.rho}
    grid = trial.suggest_categorical("grid", ["uniform", *(name for name, pair in ends.items() if pair is not None)])
    pair = ends.get(grid)
    parameter = 1.0 if pair is None else trial.suggest_float(grid, *pair, log=True)
    # A choice of its own: a number drawn from [0, 1] would never be the deterministic 0.
    renoise = search.largest_gamma > 0 and trial.suggest_categorical("renoise", [False, True])
    gamma = trial.suggest_float("gamma", 0.0, search.largest_gamma) if renoise else 0.0
    return SamplingSettings(grid, parameter, gamma, scale)


def _measured(measure: Measure, settings: SamplingSettings, search: SamplingSearch) -> Candidate:
    seeds = range(_SELECTION, _SELECTION + search.selection_seeds)
    return Candidate(settings, tuple(measure(settings, seed) for seed in seeds))


def _best(candidates: Sequence[Candidate], mode: str) -> Candidate:
    """The first of the best: the untuned one, where all are alike."""
    return min(candidates, key=lambda candidate: candidate.mean if mode == "min" else -candidate.mean)


def _gain(before: Candidate, after: Candidate, mode: str) -> Interval:
    sign = 1.0 if mode == "min" else -1.0
    return confidence_interval([sign * (b - a) for b, a in zip(before.values, after.values, strict=True)])
