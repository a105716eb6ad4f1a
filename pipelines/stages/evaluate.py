"""Measure one model: quality at each number of evaluations, against the guidance scale, and against γ.

Every measure is a mean over sampling seeds with its 95 % interval, for as many samples as there are training
images, beside the same measures of real training images (the floor). The number of evaluations counts every
network call: Heun's method two a step, guidance both networks.
"""

from __future__ import annotations

import json
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

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema

Measures = dict[str, float]


def run(config: schema.Config, stage: Stage) -> None:
    torch.set_num_threads(stage.threads)
    name = stage.item["model"]
    device = stage.device
    model = guided(Generator.load(stage.input(f"models/{name}"), device), config, stage)
    stage.check_watched(config.data.build().reads())
    bench = Bench(config, stage.input("models/features"), device)
    evaluation = Evaluation(config.evaluation, model, bench, stage.scratch / "measured.json")
    rows = [evaluation.row("quality", evaluations=n) for n in evaluation.evaluations]
    rows += [
        evaluation.row("guidance", evaluations=n, scale=scale)
        for n, scale in model.sampler.guidance_curve(config.evaluation)
    ]
    rows += [
        evaluation.row("gamma", evaluations=n, gamma=gamma) for n, gamma in model.sampler.gamma_curve(config.evaluation)
    ]
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


class Evaluation:
    """One model on the bench: averages over seeds, and remembers in a file what an earlier attempt measured."""

    def __init__(self, settings: schema.Evaluation, model: Generator, bench: Bench, memory: Path):
        self.settings = settings
        self.model = model
        self.bench = bench
        self.memory = Memory(memory)
        self.evaluations = model.sampler.evaluations(settings)

    def scales(self) -> list[float | None]:
        """The guidance scales to show pictures of; [None] of a model without that input."""
        return self.model.sampler.scales(self.settings.guidance_scales)

    def row(self, sweep: str, *, evaluations: int, scale: float | None = None, gamma: float = 0.0) -> dict[str, Any]:
        """One line of the result: where it was measured, then each measure's mean and half width of its interval."""
        per_seed = []
        nfe = 0
        for seed in range(self.settings.seeds):
            key = f"{evaluations}/{scale}/{gamma}/{seed}"
            known = self.memory.recall(key)
            if known is None:
                x, nfe, seconds = self.bench.draw(self.model, evaluations, seed, guidance_scale=scale, gamma=gamma)
                spent = {"nfe": nfe, "seconds_per_sample": seconds / len(x)}
                known = self.memory.keep(key, spent | self.bench.measure(x, seed))
            nfe = int(known["nfe"])
            per_seed.append({name: value for name, value in known.items() if name not in NOT_MEASURES})
        row: dict[str, Any] = {"sweep": sweep, "nfe": nfe, "guidance_scale": scale, "gamma": gamma}
        for measure in per_seed[0]:
            interval = confidence_interval([values[measure] for values in per_seed])
            row[measure] = interval.mean
            row[f"{measure}_ci95"] = interval.half_width
        return row

    def seconds_per_sample(self) -> dict[int, float]:
        """Seconds of drawing one sample, decoded, at each number of evaluations: the quickest of the seeds."""
        return {
            n: min(
                self.memory.known[f"{n}/{None}/{0.0}/{seed}"]["seconds_per_sample"]
                for seed in range(self.settings.seeds)
            )
            for n in self.evaluations
        }

    def preview(self, evaluations: int, scale: float | None = None) -> Tensor:
        """A hundred samples, ten a class; or points by the thousand."""
        noise, condition = preview_inputs(self.model, columns=10, seed=0)
        return self.model.sample(noise, evaluations, condition, guidance_scale=scale).x.cpu()


NOT_MEASURES = ("nfe", "seconds_per_sample")


class Memory:
    """What was measured so far, in a file of the scratch folder: an interrupted evaluation does not start over."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Measures] = json.loads(path.read_text()) if path.exists() else {}

    def recall(self, key: str) -> Measures | None:
        return self.known.get(key)

    def keep(self, key: str, measures: Measures) -> Measures:
        self.known[key] = measures
        write_whole(self.path, json.dumps(self.known))
        return measures
