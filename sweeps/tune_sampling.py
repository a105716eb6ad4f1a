"""Finds the best sampling settings of a trained student and stores them with it: `ayf tune-sampling MODEL`.

What was measured is remembered in `runs/tune_sampling/`: an interrupted search goes on, a wider one measures only what
is new. MLflow has it as a sweep, with a child run a number of steps.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

import ayf_core
from ayf_core.errors import AyfError
from ayf_core.evaluation.catalogue import directions
from ayf_core.evaluation.intervals import Interval
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.sampling.generator import Generator
from ayf_core.sampling.settings import SamplingSettings
from ayf_core.sampling.stored import read_sampling, write_sampling
from pipelines.execution.locks import only_writer
from pipelines.execution.ray_train import torch_device
from pipelines.execution.shares import worker_threads
from pipelines.project.declarations import fingerprint
from pipelines.settings import words as settings
from pipelines.settings.experiment import Config
from pipelines.settings.places import PARAMS_FILE
from pipelines.settings.reading import load_config
from pipelines.settings.runtime import RuntimeConfig, load_runtime
from pipelines.stages.bench import Bench
from pipelines.stages.evaluate import Memory
from pipelines.stages.sampling import local_model
from pipelines.tracking.registry import keep_beside_model
from pipelines.tracking.runs import StageRun, open_run
from pipelines.tracking.tags import KEY_TAG, UPSTREAM_TAG
from sweeps.sampling_search import Candidate, SamplingSearch, Verdict, tuned

NAME = "sampling"
FEATURES = "models/features"
Measures = Callable[[SamplingSettings, int], Mapping[str, float]]
Others = Mapping[str, tuple[float, float]]
"""Other measures than the one that was searched for: untuned, and best."""


@dataclass(frozen=True)
class Task:
    """What is searched for which student, checked: whose draws, compared with what, by which measure."""

    root: Path
    model: str
    folder: Path
    student: Generator
    search: SamplingSearch
    config: Config
    runtime: RuntimeConfig
    metric: str
    mode: str

    @property
    def key(self) -> str:
        """A hash of all that decides what is measured: weights, real data, features, sizes, and the library's code."""
        values = self.config.to_dict()
        features = self.root / FEATURES
        return _hash(
            {
                "model": self.student.card["sha256"],
                "settings": {name: values[name] for name in ("seed", "data", "features", "evaluation")},
                "features": fingerprint(features) if features.exists() else None,
                "code": fingerprint(Path(ayf_core.__file__).parent),
            }
        )


def tune(
    root: Path,
    model: str,
    search: SamplingSearch,
    *,
    runtime: RuntimeConfig | None = None,
    console: Console | None = None,
) -> list[Verdict]:
    """Search, confirm and store the sampling settings of a student, for each number of steps that is asked for.

    Settings are stored where held-out draws confirm a gain; where they do not, those of an earlier search are removed.

    Args:
        model: a folder, or an MLflow model URI: the run that registered it then keeps the settings.

    Raises:
        AyfError: a model that cannot be tuned or read, or a search that does not fit it.
    """
    console = console or Console()
    task = _task(root.absolute(), model, search, runtime or load_runtime(root))
    key = task.key
    place = task.root / "runs" / "tune_sampling" / key[:16]
    torch.set_num_threads(worker_threads(task.runtime))
    with only_writer(place, f"tune-sampling {model}"):
        bench = Bench(task.config, task.root / FEATURES, torch_device(task.runtime))
        memory = _memory(place / "measured.json")
        recorder = SearchRecorder(task, key, place)
        status = "FAILED"
        try:
            verdicts: list[Verdict] = []
            others: dict[int, Others] = {}
            for steps in search.steps:
                recorder.begin(steps)
                watch = _Watch(console, steps, task)
                measures = partial(_measured, task, bench, memory, steps)
                measure = partial(_one, measures, task.metric)
                verdict = tuned(measure, steps, search, _scales(task), task.mode, watch.tried)
                others[steps] = _others(measures, verdict, task.metric)
                _store(task, verdict)
                recorder.log(verdict)
                verdicts.append(verdict)
            recorder.log_all(verdicts)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            console.print("interrupted: give the command again and it goes on from here")
            raise
        finally:
            recorder.end(status)
    _show(console, verdicts, others, task.metric)
    return verdicts


def _show(console: Console, verdicts: Sequence[Verdict], others: Mapping[int, Others], metric: str) -> None:
    count = len(verdicts[0].held_out)
    console.print(f"\n{metric}, mean of {count} held-out draws; gains with their 95 % interval", highlight=False)
    console.print(table(verdicts))
    console.print("\nthe other measures of the same draws, untuned -> best", highlight=False)
    console.print(others_table(others))


def table(verdicts: Sequence[Verdict]) -> Table:
    """What held-out draws say, a line a number of steps."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("steps", "before", "λ alone", "after", "gain", "over λ alone"):
        drawn.add_column(heading, no_wrap=True)
    drawn.add_column("settings used", overflow="fold")
    for verdict in verdicts:
        used = str(verdict.best.settings) if verdict.confirmed else f"{verdict.untuned.settings}: no gain confirmed"
        means = [f"{candidate.mean:.3f}" for candidate in (verdict.untuned, verdict.guided, verdict.best)]
        drawn.add_row(str(verdict.steps), *means, words(verdict.gain), words(verdict.gain_over_guided), used)
    return drawn


def others_table(others: Mapping[int, Others]) -> Table:
    """What became of the measures that were not searched for, a line each: a distance alone would not tell."""
    drawn = Table("", *map(step_words, others), box=None, pad_edge=False, header_style="bold")
    for name in next(iter(others.values())):
        pairs = [found[name] for found in others.values()]
        drawn.add_row(name, *(f"{before:.3f} -> {after:.3f}" for before, after in pairs))
    return drawn


def step_words(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def words(interval: Interval) -> str:
    """`0.12 ± 0.04`."""
    return f"{interval.mean:.3f} ± {interval.half_width:.3f}"


# ------------------------------------------------------------------------------------- what fits and what does not


def _task(root: Path, model: str, search: SamplingSearch, runtime: RuntimeConfig) -> Task:
    config = load_config(root)
    metric, mode = _metric(search, config)
    folder = local_model(model, root)
    student = Generator.load(folder, torch_device(runtime))
    if not student.sampler.takes_settings:
        raise AyfError(f"{model} is a velocity network, sampled by {student.sampler.words}: name a distilled student")
    about = config.data.component
    if student.makes_points != ("points" in about.facts["gives"]):
        raise AyfError(f"{model} does not make what params.yaml is about ({about.title}): name another student")
    task = Task(root, model, folder, student, search, config, runtime, metric, mode)
    _scales(task)
    return task


def _metric(search: SamplingSearch, config: Config) -> tuple[str, str]:
    """The measure and which way it is better."""
    better = directions(config.data.kind)
    name = search.metric or next(iter(better))
    if name not in better:
        guess = settings.nearest(name, better)
        raise AyfError(
            f"no measure {name} of data.name = {config.data.kind}: "
            + (f"did you mean {guess}?" if guess else f"choose {', '.join(better)}")
        )
    return name, better[name]


def _scales(task: Task) -> GuidanceRange | None:
    """The least and the largest λ to try; None of a student that takes none."""
    limits, largest = task.student.guidance_range, task.search.largest_guidance_scale
    if largest is None:
        return limits
    if limits is None or largest not in limits:
        learnt = "no λ" if limits is None else str(limits)
        raise AyfError(f"largest_guidance_scale = {largest:g}, but {task.model} learnt {learnt}: set it to null")
    return GuidanceRange(limits.minimum, largest)


# --------------------------------------------------------------------------------------- measuring and remembering


def _measured(
    task: Task, bench: Bench, memory: Memory, steps: int, how: SamplingSettings, seed: int
) -> Mapping[str, float]:
    """Every measure of samples drawn with these settings; drawn once only, and remembered."""
    key = json.dumps([steps, *how.to_dict().values(), seed])
    known = memory.recall(key)
    if known is None:
        samples, _, _ = bench.draw(task.student, steps, seed, **how.arguments(steps))
        known = memory.keep(key, bench.measure(samples, seed))
    return known


def _one(measures: Measures, metric: str, how: SamplingSettings, seed: int) -> float:
    return measures(how, seed)[metric]


def _others(measures: Measures, verdict: Verdict, metric: str) -> Others:
    """Means of every other measure on the held-out draws, of the untuned settings and of the best."""

    def means(candidate: Candidate) -> dict[str, float]:
        draws = [measures(candidate.settings, seed) for seed in verdict.held_out]
        return {name: math.fsum(draw[name] for draw in draws) / len(draws) for name in draws[0] if name != metric}

    before, after = means(verdict.untuned), means(verdict.best)
    return {name: (before[name], after[name]) for name in before}


def _memory(path: Path) -> Memory:
    try:
        return Memory(path)
    except ValueError as error:
        raise AyfError(f"{path} is damaged ({error}): delete it, and its candidates are measured again") from None


def _store(task: Task, verdict: Verdict) -> None:
    try:
        stored = read_sampling(task.folder)
    except AyfError:
        stored = {}  # of other weights, or damaged: this search is the remedy that the reader names
    stored.pop(verdict.steps, None)
    if verdict.confirmed:
        stored[verdict.steps] = verdict.record(task.metric)
    keep_beside_model(task.model, write_sampling(task.folder, stored), task.root, task.runtime)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------- telling it


class _Watch:
    """Says how far the search of a number of steps is: each new best, and every tenth candidate."""

    def __init__(self, console: Console, steps: int, task: Task) -> None:
        self._console = console
        self._steps = steps
        self._task = task
        self._tried: list[Candidate] = []

    def tried(self, candidate: Candidate) -> None:
        self._tried.append(candidate)
        sign = 1.0 if self._task.mode == "min" else -1.0
        best = min(self._tried, key=lambda known: sign * known.mean)
        if best is candidate or len(self._tried) % 10 == 0:
            where = f"{step_words(self._steps)}, candidate {len(self._tried)} of {self._task.search.candidates}"
            line = f"{where}: best {self._task.metric} {best.mean:.4g} ({best.settings})"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class SearchRecorder:
    """The runs of a search in MLflow, a parent and a child a number of steps; a repeated search finds its own again."""

    def __init__(self, task: Task, key: str, place: Path) -> None:
        self._task = task
        self._key = _hash([key, dataclasses.asdict(task.search)])
        self._place = place / self._key[:16]
        self._child: StageRun | None = None
        tags = {
            "ayf.metric": ",".join(f"{task.metric}/nfe_{steps}" for steps in task.search.steps),
            "ayf.mode": ",".join(task.mode for _ in task.search.steps),
            "ayf.tuned_model": task.model,
        }
        self.run = self._open(f"tune sampling {task.model}", self._place, tags, {"model": task.model})
        maker = self.run.maker_of(task.model, fingerprint(task.folder))
        if maker:
            self.run.set_tags({f"{UPSTREAM_TAG}{task.model}": maker})
        self.run.log_text("sweep.yaml", yaml.safe_dump(dataclasses.asdict(task.search), sort_keys=False))
        self.run.log_text(PARAMS_FILE, (task.root / PARAMS_FILE).read_text())

    def begin(self, steps: int) -> None:
        """Open the run of a number of steps."""
        self._child = self._open_child(steps, step_words(steps), "running", {})

    def log(self, verdict: Verdict) -> None:
        """The run of a number of steps: the settings used, the metric of each candidate, and what was confirmed."""
        used = verdict.best if verdict.confirmed else verdict.untuned
        name = f"{step_words(verdict.steps)}: {used.settings}"
        child = self._open_child(verdict.steps, name, "finished", used.settings.to_dict())
        metric = self._task.metric
        for number, candidate in enumerate(verdict.candidates):
            child.log_values({f"candidate/{metric}": candidate.mean}, step=number)
        name = f"{metric}/nfe_{verdict.steps}"
        found = {name: used.mean, f"{name}/untuned": verdict.untuned.mean, f"{name}/gain": verdict.gain.mean}
        child.log_values(found)
        child.finish()
        self._child = None

    def log_all(self, verdicts: Sequence[Verdict]) -> None:
        """What all led to, and the table of all candidates."""
        for verdict in verdicts:
            used = verdict.best if verdict.confirmed else verdict.untuned
            self.run.log_values({f"{self._task.metric}/nfe_{verdict.steps}": used.mean})
        self.run.log_text("trials.csv", candidates_csv(verdicts, self._task.metric))

    def end(self, status: str) -> None:
        """Close what is open."""
        if self._child is not None:
            self._child.finish(status)
        self.run.finish(status)

    def _open_child(self, steps: int, name: str, status: str, found: Mapping[str, Any]) -> StageRun:
        tags = {"ayf.trial": str(steps), "ayf.trial.status": status}
        params = {"sampling": {"steps": steps, **found}}
        return self._open(name, self._place / f"steps_{steps}", tags, params, parent=self.run.id)

    def _open(
        self, name: str, place: Path, tags: Mapping[str, str], params: Mapping[str, Any], parent: str | None = None
    ) -> StageRun:
        return open_run(
            "tune_sampling",
            run_name=name,
            root=self._task.root,
            scratch=place,
            params=params,
            tags={KEY_TAG: _hash([self._key, place.name]), "ayf.sweep": NAME, **tags},
            runtime=dataclasses.replace(self._task.runtime, system_metrics=False),
            kind="sweep" if parent is None else "trial",
            parent=parent,
        )


def candidates_csv(verdicts: Sequence[Verdict], metric: str) -> str:
    """Every candidate with the mean of its selection draws, a line each."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(SamplingSettings)]
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["steps", "candidate", *names, metric])
    for verdict in verdicts:
        for number, candidate in enumerate(verdict.candidates):
            lines.writerow([verdict.steps, number, *candidate.settings.to_dict().values(), candidate.mean])
    return text.getvalue()
