"""Measure one model: quality at each number of evaluations, against the guidance scale, and against γ.

Every measure is a mean over sampling seeds with its 95 % interval, for as many samples as there are training
images, beside the same measures of real training images (the floor). The number of evaluations counts every
network call: Heun's method two a step, guidance both networks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ayf_core.evaluation.catalogue import measures
from ayf_core.evaluation.intervals import confidence_interval
from ayf_core.files import write_whole
from ayf_core.networks.files import load_network
from ayf_core.sampling.generator import Generator
from pipelines.stages.bench import Bench
from pipelines.stages.pictures import grid, preview_inputs
from pipelines.stages.side_by_side import Check, side_by_side

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema

Measures = dict[str, float]


def run(config: schema.Config, stage: Stage) -> None:
    name = stage.item["model"]
    device = stage.device
    at_once = stage.threads if device.type == "cpu" else 1
    torch.set_num_threads(stage.threads // at_once)
    model = guided(Generator.load(stage.input(f"models/{name}"), device), config, stage)
    stage.check_watched(config.data.build().reads())
    bench = Bench(config, stage.input("models/features"), device)
    evaluation = Evaluation(config.evaluation, model, bench, stage.scratch / "measured.json")
    places = [Place("quality", n) for n in evaluation.evaluations]
    places += [Place("guidance", n, scale=scale) for n, scale in model.sampler.guidance_curve(config.evaluation)]
    places += [Place("gamma", n, gamma=gamma) for n, gamma in model.sampler.gamma_curve(config.evaluation)]
    evaluation.measure(places, at_once)
    rows = [evaluation.row(place) for place in places]
    document = {"model": name, "distance": bench.distance, "floor": bench.floor(config.seed), "rows": rows}
    output = stage.output(f"reports/evaluation/{name}.json")
    output.write_text(json.dumps(document, indent=2) + "\n")
    tell(stage, evaluation, document)


def guided(model: Generator, config: schema.Config, stage: Stage) -> Generator:
    """The model guided as the teacher was while it was distilled, where it is one that is guided from outside.

    The weak teacher itself is measured as it is: it is what the others are guided away from.
    """
    guidance = config.distill.guidance.component
    if model.sampler.takes_settings or not guidance.facts["needs_scale"]:
        return model
    weak_teacher, card = load_network(stage.input("models/weak_teacher"), stage.device)
    if card["sha256"] == model.card["sha256"]:
        return model
    return model.guided_by(guidance.load().build(model.network, weak_teacher, model.spec.conditions))


def tell(stage: Stage, evaluation: Evaluation, document: dict[str, Any]) -> None:
    """Log headline figures, the whole document and pictures; seconds go to MLflow only, being no result."""
    quality = [row for row in document["rows"] if row["sweep"] == "quality"]
    for measure in [name for name, about in measures().items() if about.facts.get("logged")]:
        stage.run.log_values({f"{measure}/nfe_{row['nfe']}": row[measure] for row in quality if measure in row})
    stage.run.log_values({f"seconds_per_image/nfe_{n}": s for n, s in evaluation.seconds_per_sample().items()})
    stage.run.set_tags({"ayf.model": document["model"]})
    stage.run.log_json("evaluation.json", document)
    for evaluations in evaluation.evaluations:
        stage.run.log_step_image("samples", evaluations, grid(evaluation.preview(evaluations), columns=10))
        for scale in evaluation.scales():
            word = "" if scale is None else f"_scale_{scale:g}"
            picture = grid(evaluation.preview(evaluations, scale), columns=10)
            stage.run.log_image(f"samples/nfe_{evaluations:03d}{word}.png", picture)


@dataclass(frozen=True)
class Place:
    """Where a model is measured: a row of the result."""

    sweep: str
    evaluations: int
    scale: float | None = None
    gamma: float = 0.0


class Evaluation:
    """One model on the bench: averages over seeds, and remembers in a file what an earlier attempt measured."""

    def __init__(self, settings: schema.Evaluation, model: Generator, bench: Bench, memory: Path):
        self.settings = settings
        self.model = model
        self.bench = bench
        self.memory = Memory(memory)
        self.evaluations = model.sampler.evaluations(settings)
        self._previews: dict[tuple[int, float | None], Tensor] = {}

    def scales(self) -> list[float | None]:
        """The guidance scales to show pictures of; [None] of a model without that input."""
        return self.model.sampler.scales(self.settings.guidance_scales)

    def measure(self, places: Sequence[Place], at_once: int = 1) -> None:
        """Draw and measure at these places, so many draws at once; those of an earlier attempt are known already."""
        draws = {self._key(place, seed): (place, seed) for place in places for seed in self._seeds}
        waiting = [(key, *draw) for key, draw in draws.items() if self.memory.recall(key) is None]
        waiting.sort(key=lambda draw: -self._nfe(draw[1]))  # the longest first: at the end no core waits for it
        side_by_side(self._draw_and_measure, waiting, at_once)

    def _draw_and_measure(self, draw: tuple[str, Place, int], check: Check) -> None:
        key, place, seed = draw
        how = {"guidance_scale": self._scale(place), "gamma": place.gamma}
        x, _, seconds = self.bench.draw(self.model, place.evaluations, seed, check, **how)
        self.memory.keep(key, {SECONDS: seconds / len(x)} | self.bench.measure(x, seed))

    def row(self, place: Place) -> dict[str, Any]:
        """One line of the result: where it was measured, then each measure's mean and half width of its interval."""
        per_seed = [self.memory.known[self._key(place, seed)] for seed in self._seeds]
        row: dict[str, Any] = {
            "sweep": place.sweep,
            "nfe": self._nfe(place),
            "guidance_scale": place.scale,
            "gamma": place.gamma,
        }
        for measure in per_seed[0]:
            if measure == SECONDS:
                continue
            interval = confidence_interval([values[measure] for values in per_seed])
            row[measure] = interval.mean
            row[f"{measure}_ci95"] = interval.half_width
        return row

    @property
    def _seeds(self) -> range:
        return range(self.settings.seeds)

    def _scale(self, place: Place) -> float | None:
        return self.model.sampler.effective_scale(place.scale)

    def _nfe(self, place: Place) -> int:
        return self.model.sampler.nfe(place.evaluations, place.scale)

    def _key(self, place: Place, seed: int) -> str:
        """The same for places whose samples are the same, which are drawn once."""
        return f"{place.evaluations}/{self._scale(place)}/{place.gamma}/{seed}"

    def seconds_per_sample(self) -> dict[int, float]:
        """Seconds of drawing one sample, decoded, at each number of evaluations: the quickest of the seeds."""
        return {
            n: min(self.memory.known[self._key(Place("quality", n), seed)][SECONDS] for seed in self._seeds)
            for n in self.evaluations
        }

    def preview(self, evaluations: int, scale: float | None = None) -> Tensor:
        """A hundred samples, ten a class; or points by the thousand."""
        where = (evaluations, self.model.sampler.effective_scale(scale))
        if where not in self._previews:
            noise, condition = preview_inputs(self.model, columns=10, seed=0)
            drawn = self.model.sample(noise, evaluations, condition, guidance_scale=where[1])
            self._previews[where] = drawn.x.cpu()
        return self._previews[where]


SECONDS = "seconds_per_sample"
"""What is remembered beside the measures: of drawing, with as many threads as one draw has."""


class Memory:
    """What was measured so far, in a file of the scratch folder: an interrupted evaluation does not start over."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Measures] = json.loads(path.read_text()) if path.exists() else {}
        self._writing = threading.Lock()

    def recall(self, key: str) -> Measures | None:
        return self.known.get(key)

    def keep(self, key: str, measures: Measures) -> Measures:
        with self._writing:
            self.known[key] = measures
            write_whole(self.path, json.dumps(self.known))
        return measures
