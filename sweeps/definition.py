"""What `sweeps/NAME.yaml` says: what is searched, by which measure, how, and within which budget.

Its keys are settings of params.yaml, held to the same types and ranges; all is checked before anything starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ayf_core.errors import AyfError
from ayf_core.evaluation.catalogue import directions
from ayf_core.settings import setting
from ayf_core.training_settings import TrainingSettings
from pipelines.project.declarations import Declaration, read_declarations
from pipelines.settings import experiment as schema
from pipelines.settings.reading import with_values
from pipelines.settings.words import nearest, subtree
from pipelines.settings.yaml_file import read_typed
from sweeps.space import Dimension, Point, Range, extremes, grid_points, read_fixed, read_space

_METRIC = re.compile(r"(?P<measure>\w+)/nfe_(?P<nfe>\d+)")
_MODEL = "models/"
_VELOCITY_STAGES = ("train_teacher", "train_weak_teacher")


@dataclass
class Search:
    """The settings of a sweep file, beside its `space` and `fixed`."""

    question: str = setting("what the search is to answer")
    stages: list[str] = setting("the stage or chain of stages; the last makes the model that is measured")
    metrics: list[str] = setting("what `evaluate` reports, such as fd/nfe_2; several: a Pareto search")
    guidance_scale: float | None = setting("λ of the measured samples; null = least learnt", at_least=0.0, default=None)
    search: str = setting("how points are proposed", choices=("optuna", "random", "grid"))
    scheduler: str = setting("what is done with weak trials", choices=("asha", "population", "none"))
    trials: int | None = setting("how many; null = every point of a grid", at_least=1, default=None)
    hours: float | None = setting("no trial starts after so many hours", above=0.0, default=None)
    measure_every: int = setting("training steps between measurements", at_least=1)
    asha_first: int | None = setting("steps every trial gets; null = measure_every", at_least=1, default=None)
    asha_factor: int | None = setting("one in so many goes on at each rung; null = 3", at_least=2, default=None)
    exploit_share: float | None = setting(
        "share that copies, and that is copied; null = 0.25", above=0.0, at_most=0.5, default=None
    )
    seed: int = setting("of the proposals", at_least=0, default=0)
    training_seeds: list[int] | None = setting("each point is trained once a seed", at_least=0, default=None)
    confirm_seeds: list[int] | None = setting(
        "the best and the present settings are trained with", at_least=0, default=None
    )


@dataclass(frozen=True)
class Metric:
    """A measure of `evaluate` at a number of network evaluations, and which way it is better (`min` or `max`)."""

    name: str
    measure: str
    nfe: int
    mode: str

    def better(self, one: float, other: float) -> bool:
        return one < other if self.mode == "min" else one > other


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file over the present params.yaml."""

    name: str
    search: Search
    space: Mapping[str, Dimension]
    fixed: Point
    metrics: tuple[Metric, ...]
    config: schema.Config
    chain: tuple[Declaration, ...]

    @property
    def metric(self) -> Metric:
        """The first metric: what schedulers stop by and what the best trial is best at."""
        return self.metrics[0]

    @property
    def model(self) -> str:
        """The output of the last stage, such as `models/emd`."""
        return next(out for out in self.chain[-1].outputs if out.startswith(_MODEL))

    @property
    def present(self) -> Point:
        """The values that params.yaml gives to the searched settings."""
        values = self.config.to_dict()
        return {key: subtree(values, key) for key in self.space}

    def trial_config(self, point: Point) -> schema.Config:
        """The whole experiment of one trial.

        Raises:
            AyfError: settings that do not agree.
        """
        return with_values(self.config, {**self.fixed, **point})

    def training(self, point: Point) -> TrainingSettings:
        """How the chain's last stage trains."""
        return _training(self.trial_config(point), self.chain[-1])

    def points(self) -> list[Point]:
        """The points of a grid, each once a training seed; what is not a grid has none beforehand."""
        if self.search.search != "grid":
            return []
        points = grid_points(self.space, f"{self.name}.yaml")
        return [{**point, **seeded} for point in points for seeded in self._seeds()]

    def _seeds(self) -> list[Point]:
        return [{"seed": seed} for seed in self.search.training_seeds or []] or [{}]

    @property
    def trials(self) -> int:
        """How many trials the sweep has."""
        return self.search.trials or len(self.points())


def sweep_names(root: Path) -> list[str]:
    """The sweeps that `sweeps/` of a project holds."""
    return sorted(path.stem for path in (root / "sweeps").glob("*.yaml"))


def read_sweep(root: Path, path: Path, config: schema.Config) -> Sweep:
    """The sweep of a file, checked against an experiment's settings.

    Raises:
        AyfError: whatever is wrong with it, before anything starts.
    """
    search, groups = read_typed(path, Search, "see sweeps/ for those there are", ("space", "fixed"))
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise AyfError(f"{path.name}: {name} must hold `setting: ...` lines")
    keys = config.keys()
    space = read_space(groups.get("space", {}), keys, path.name)
    fixed = read_fixed(groups.get("fixed", {}), keys, path.name)
    chain = _chain(root, search.stages, path.name)
    config = with_values(config, fixed)
    metrics = tuple(_metric(name, config, chain[-1], path.name) for name in search.metrics)
    sweep = Sweep(path.stem, search, space, fixed, metrics, config, chain)
    _check_keys(root, sweep, path.name)
    _check_search(sweep, path.name)
    for point in extremes(space):
        try:
            sweep.trial_config(point)
        except AyfError as error:
            raise AyfError(f"{path.name}: space: {error}; narrow the space or set it under fixed") from error
    return sweep


def _chain(root: Path, names: list[str], where: str) -> tuple[Declaration, ...]:
    declared = read_declarations(root)
    for name in names:
        if name not in declared:
            guess = nearest(name, declared)
            raise AyfError(f"{where}: dvc.yaml has no stage {name}" + (f": did you mean {guess}?" if guess else ""))
    chain = tuple(declared[name] for name in names)
    model = next((out for out in chain[-1].outputs if out.startswith(_MODEL)), None)
    measured = {dep for stage in declared.values() if stage.base == "evaluate" for dep in stage.deps}
    if model is None or model not in measured or chain[-1].base == "train_features":
        raise AyfError(
            f"{where}: the last stage {names[-1]} makes no model that `evaluate` measures: end with one that does"
        )
    for earlier, later in pairwise(chain):
        if not set(earlier.outputs) & set(later.deps):
            raise AyfError(f"{where}: {later.name} does not read what {earlier.name} makes: mend the order of stages")
    return chain


def _metric(name: str, config: schema.Config, last: Declaration, where: str) -> Metric:
    match = _METRIC.fullmatch(name)
    measures = directions(config.data.kind)
    velocity = last.base in _VELOCITY_STAGES
    counts = config.evaluation.teacher_evaluations if velocity else config.evaluation.steps
    known = [f"{measure}/nfe_{nfe}" for measure in measures for nfe in counts]
    if match is None or name not in known:
        guess = nearest(name, known)
        raise AyfError(
            f"{where}: no stage reports {name}" + (f": did you mean {guess}?" if guess else f": one of {known[0]}, ...")
        )
    return Metric(name, match["measure"], int(match["nfe"]), measures[match["measure"]])


def _check_keys(root: Path, sweep: Sweep, where: str) -> None:
    """Every searched setting must change the chain, and nothing that the chain takes as given."""
    declared = read_declarations(root)
    names = {stage.name for stage in sweep.chain}
    upstream = _upstream(sweep.chain, declared)
    for key in [*sweep.space, *sweep.fixed]:
        if key == "seed":
            raise AyfError(
                f"{where}: seed also decides data and teacher: use training_seeds, which re-seed the training alone"
            )
        if key in sweep.space and not any(_declares(stage, key) for stage in sweep.chain):
            where_used = [stage.name for stage in declared.values() if _declares(stage, key)]
            raise AyfError(f"{where}: {key} has no effect on {', '.join(names)}: it belongs to {', '.join(where_used)}")
        for stage in upstream:
            if stage.name not in names and _declares(stage, key):
                raise AyfError(
                    f"{where}: {key} also changes {stage.name}, which the trials take as it is: add it to stages"
                )


def _upstream(chain: tuple[Declaration, ...], declared: Mapping[str, Declaration]) -> list[Declaration]:
    found: dict[str, Declaration] = {}
    waiting = list(chain)
    while waiting:
        stage = waiting.pop()
        makers = [other for other in declared.values() if set(other.outputs) & set(stage.deps)]
        waiting += [maker for maker in makers if maker.name not in found]
        found |= {maker.name: maker for maker in makers}
    return list(found.values())


def _declares(stage: Declaration, key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in stage.params)


def _check_search(sweep: Sweep, where: str) -> None:
    """Settings that are valid one by one but not together, or that would silently have no effect."""
    search = sweep.search
    if search.search != "grid" and search.trials is None:
        raise AyfError(f"{where}: trials is missing: say how many, search: {search.search} has no end by itself")
    if search.search != "grid" and search.training_seeds:
        raise AyfError(f"{where}: training_seeds is read with search: grid only; use confirm_seeds for the best")
    seeded = next((name for name in ("training_seeds", "confirm_seeds") if getattr(search, name)), None)
    if seeded and any("data" in stage.params for stage in sweep.chain):
        raise AyfError(f"{where}: {seeded} would also draw other data: leave stages that read them out of stages")
    points = sweep.points()
    if search.search == "grid" and search.trials not in (None, len(points)):
        raise AyfError(f"{where}: trials = {search.trials}, but the grid has {len(points)} points: leave trials out")
    if search.scheduler != "asha" and (search.asha_first or search.asha_factor):
        raise AyfError(f"{where}: asha_first and asha_factor are read with scheduler: asha only; leave them out")
    if search.scheduler != "population" and search.exploit_share:
        raise AyfError(f"{where}: exploit_share is read with scheduler: population only; leave it out")
    if len(sweep.metrics) > 1 and search.scheduler != "none":
        raise AyfError(
            f"{where}: {len(sweep.metrics)} metrics have no one order to stop trials by: set scheduler: none"
        )
    if search.scheduler == "population":
        _check_population(sweep, where)
    _check_guidance_scale(sweep, where)
    steps = sweep.training({}).steps
    if search.measure_every > steps:
        raise AyfError(
            f"{where}: measure_every = {search.measure_every} is above the {steps} steps of a trial: lower it"
        )


def _check_guidance_scale(sweep: Sweep, where: str) -> None:
    scale, limits = sweep.search.guidance_scale, sweep.config.distill.guidance.build().range
    if scale is None:
        return
    if sweep.chain[-1].base in _VELOCITY_STAGES or limits is None:
        raise AyfError(f"{where}: guidance_scale: the measured model takes none: leave it out")
    if scale not in limits:
        raise AyfError(f"{where}: guidance_scale = {scale:g}: the student learns {limits} only; choose within")


def _check_population(sweep: Sweep, where: str) -> None:
    if sweep.search.hours:
        raise AyfError(f"{where}: hours stops no population, whose members all start at once: leave it out")
    if sweep.trials < 4:
        raise AyfError(f"{where}: a population needs 4 trials or more, not {sweep.trials}")
    if len(sweep.chain) > 1:
        raise AyfError(f"{where}: scheduler: population searches one stage, not a chain: name the last only")
    for key, dimension in sweep.space.items():
        if key.endswith(".steps") or (isinstance(dimension, Range) and dimension.whole):
            raise AyfError(f"{where}: {key} cannot change while a trial trains: leave it out of a population's space")


def _training(config: schema.Config, stage: Declaration) -> TrainingSettings:
    """The training settings of a stage, such as those of `distill.emd`."""
    values: dict[str, TrainingSettings] = {
        "train_teacher": config.teacher.training,
        "train_weak_teacher": config.weak_teacher.training,
        "finetune_adversarial": config.adversarial.training,
    }
    if stage.base == "distill":
        return config.distill.students[stage.item["objective"]].training
    return values[stage.base]
