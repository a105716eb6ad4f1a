"""Measure one model: quality at each number of evaluations, against the guidance scale, and against γ.

Every measure is a mean over sampling seeds with its 95 % interval, for as many samples as there are training
images, beside the same measures of real training images (the floor). The number of evaluations counts every
network call: Heun's method two a step, guidance both networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ayf_core.data.datasets import CHECKERBOARD_HALF_WIDTH, DataSet
from ayf_core.evaluation.features import (
    ClassifierFeatures,
    FeatureExtractor,
    InceptionFeatures,
    PixelFeatures,
    SmallClassifier,
)
from ayf_core.evaluation.intervals import confidence_interval
from ayf_core.evaluation.quality import ImageReference, PointReference
from ayf_core.flow_map import load_network
from ayf_core.generator import Generator
from ayf_core.velocity import VelocityField, guided
from pipelines import config as schema
from pipelines.execution import torch_device, worker_threads
from pipelines.pictures import POINTS_SHOWN, class_rows, grid
from pipelines.stage import Stage
from pipelines.training import data_job

Reference = ImageReference | PointReference
Measures = dict[str, float]


def run(config: schema.Config, stage: Stage) -> None:
    torch.set_num_threads(worker_threads(stage.runtime))
    name = stage.item["model"]
    model = Generator.load(stage.input(f"models/{name}"), torch_device(stage.runtime))
    bench = Bench(config, stage, model)
    rows = [bench.row("quality", evaluations=n) for n in bench.evaluations]
    rows += [bench.row("guidance", evaluations=n, scale=scale) for n, scale in bench.guidance()]
    if model.role == "flow_map":
        rows += [
            bench.row("gamma", evaluations=config.evaluation.guidance_steps, gamma=gamma)
            for gamma in config.evaluation.gammas
        ]
    document = {"model": name, "distance": bench.distance, "floor": bench.floor, "rows": rows}
    stage.output(f"reports/evaluation/{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    stage.run.log_values(
        {f"{bench.distance}/nfe_{row['nfe']}": row[bench.distance] for row in rows if row["sweep"] == "quality"}
    )
    stage.run.log_values(
        {f"recall/nfe_{row['nfe']}": row["recall"] for row in rows if row["sweep"] == "quality" and "recall" in row}
    )
    for evaluations in bench.evaluations:
        picture = grid(bench.preview(evaluations), columns=10)
        stage.run.log_image(f"samples/nfe_{evaluations:03d}.png", picture)


class Bench:
    """A model on the test bench: draws, measures, averages over seeds; remembers what an earlier attempt measured."""

    def __init__(self, config: schema.Config, stage: Stage, model: Generator):
        self.settings = config.evaluation
        self.model = model
        dataset = data_job(config, stage).dataset()
        self.labels = dataset.train.labels
        self.reference = reference_of(dataset, config, stage)
        self.floor = self.reference.floor(config.seed)
        self.distance = "fd" if isinstance(self.reference, ImageReference) else "jsd"
        kind = config.distill.guidance.kind
        self.guided = self._guided_field(kind, stage) if stage.item["model"] == "teacher" else None
        self.memory = Memory(stage.scratch / "measured.json")
        steps, calls = config.evaluation.steps, config.evaluation.teacher_evaluations
        self.evaluations = steps if model.role == "flow_map" else calls

    def _guided_field(self, kind: str, stage: Stage) -> VelocityField | None:
        """The teacher guided as it was distilled."""
        if kind == "none":
            return None
        weak_teacher, _ = load_network(stage.input("models/weak_teacher"), torch_device(stage.runtime))
        return guided(kind, self.model.network, weak_teacher, self.model.spec.num_classes)

    def guidance(self) -> list[tuple[int, float]]:
        """(evaluations, λ) of the guidance curve: of a student within what it learnt, of the teacher all."""
        if self.model.role == "velocity":
            if self.guided is None:
                return []
            calls = sorted(self.settings.teacher_evaluations)
            return [(calls[len(calls) // 2], scale) for scale in self.settings.guidance_scales]
        limits = self.model.guidance_range
        if limits is None:
            return []
        inside = [scale for scale in self.settings.guidance_scales if limits[0] <= scale <= limits[1]]
        return [(self.settings.guidance_steps, scale) for scale in inside]

    def row(self, sweep: str, *, evaluations: int, scale: float | None = None, gamma: float = 0.0) -> dict[str, Any]:
        """One line of the result: where it was measured, then each measure's mean and half width of its interval."""
        per_seed = []
        nfe = 0
        for seed in range(self.settings.seeds):
            key = f"{evaluations}/{scale}/{gamma}/{seed}"
            known = self.memory.recall(key)
            if known is None:
                x, nfe = self.draw(evaluations, scale, gamma, seed)
                known = self.memory.keep(key, {"nfe": nfe, **self.reference.measure(x, seed)})
            nfe = int(known["nfe"])
            per_seed.append({name: value for name, value in known.items() if name != "nfe"})
        row: dict[str, Any] = {"sweep": sweep, "nfe": nfe, "guidance_scale": scale, "gamma": gamma}
        for measure in per_seed[0]:
            interval = confidence_interval([values[measure] for values in per_seed])
            row[measure] = interval.mean
            row[f"{measure}_ci95"] = interval.half_width
        return row

    def draw(self, evaluations: int, scale: float | None, gamma: float, seed: int) -> tuple[Tensor, int]:
        """As many samples as there are training images, with their labels."""
        noise = self.model.draw_noise(len(self.labels), seed=1000 + seed)
        renoise = torch.Generator().manual_seed(2000 + seed)
        parts, nfe = [], 0
        for rows in torch.arange(len(noise)).split(self.settings.batch_size):
            drawn = self.model.sample(
                noise[rows],
                evaluations,
                self.labels[rows].to(noise.device) if self.model.spec.num_classes > 1 else None,
                guidance_scale=scale,
                gamma=gamma,
                velocity=self.guided if scale is not None else None,
                generator=renoise,
            )
            parts.append(drawn.x.cpu())
            nfe = drawn.nfe
        return torch.cat(parts), nfe

    def preview(self, evaluations: int) -> Tensor:
        """A hundred samples, ten a class; or points by the thousand."""
        labels = class_rows(self.model.spec.num_classes, columns=10)
        noise = self.model.draw_noise(POINTS_SHOWN if self.model.makes_points else len(labels), seed=0)
        conditions = labels.to(noise.device) if self.model.spec.num_classes > 1 else None
        return self.model.sample(noise, evaluations, conditions).x.cpu()


class Memory:
    """What was measured so far, in a file of the scratch folder: an interrupted evaluation does not start over."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Measures] = json.loads(path.read_text()) if path.exists() else {}

    def recall(self, key: str) -> Measures | None:
        return self.known.get(key)

    def keep(self, key: str, measures: Measures) -> Measures:
        self.known[key] = measures
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(self.known))
        beside.replace(self.path)
        return measures


def reference_of(dataset: DataSet, config: schema.Config, stage: Stage) -> Reference:
    """The real data that models are compared with."""
    if dataset.kind == "points":
        return PointReference(dataset.train.x, dataset.test.x, CHECKERBOARD_HALF_WIDTH)
    extractor = EXTRACTORS[config.features.kind](stage)
    return ImageReference.of(dataset.train.x, dataset.test.x, extractor, config.evaluation.neighbours)


EXTRACTORS: dict[str, Callable[[Stage], FeatureExtractor]] = {
    "classifier": lambda stage: ClassifierFeatures(SmallClassifier.load(stage.input("models/features"))),
    "pixels": lambda stage: PixelFeatures(),
    "inception": lambda stage: InceptionFeatures(device=str(torch_device(stage.runtime))),
}
