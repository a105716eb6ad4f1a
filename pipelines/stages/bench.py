"""The test bench: the real data of an experiment, and how samples of any model are drawn and compared with them.

Evaluation, sweeps and the tuning of sampling all measure here, so that the same number means the same thing
everywhere.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.data.datasets import CHECKERBOARD_HALF_WIDTH, DataSet, load_dataset
from ayf_core.evaluation.features import (
    ClassifierFeatures,
    FeatureExtractor,
    InceptionFeatures,
    PixelFeatures,
    SmallClassifier,
)
from ayf_core.evaluation.quality import ImageReference, PointReference
from ayf_core.sampling.generator import Generator
from pipelines.settings import experiment as schema

BETTER: Mapping[str, Mapping[str, str]] = {
    "images": {
        "fd": "min",
        "fd_test": "min",
        "kernel_distance": "min",
        "precision": "max",
        "recall": "max",
        "density": "max",
        "coverage": "max",
        "authenticity": "max",
    },
    "points": {"jsd": "min", "sliced_wasserstein": "min"},
}
"""Which way each measure of quality is better, by the kind of data."""


class Bench:
    """Draws samples of a model and measures them against the experiment's real data.

    Args:
        config: the data, their features and the sizes of the evaluation.
        features: the folder `models/features` (read where the features are a classifier's).
        device: where a network of features computes.

    Attributes:
        distance: the headline measure, `fd` of images or `jsd` of points.
        condition: of the training data, in order: each is drawn once.
    """

    def __init__(self, config: schema.Config, features: Path, device: torch.device | str = "cpu") -> None:
        dataset = load_dataset(seed=config.seed, **dataclasses.asdict(config.data))
        self.condition = Condition(labels=dataset.train.labels)
        self._count = len(dataset.train)
        self.distance = "fd" if dataset.kind == "images" else "jsd"
        self._batch_size = config.evaluation.batch_size
        self._reference = _reference(dataset, config, features, device)

    def draw(self, model: Generator, evaluations: int, seed: int, **how: Any) -> tuple[Tensor, int, float]:
        """As many samples as there are training data, with their conditions: samples, evaluations spent, seconds.

        Args:
            seed: of the noise; the same seed gives every model of the same shape the same noise.
            how: what `Generator.sample` takes besides, such as `guidance_scale` and `gamma`.
        """
        noise = model.draw_noise(self._count, seed=1000 + seed)
        renoise = torch.Generator().manual_seed(2000 + seed)
        condition = self.condition.only(model.spec.conditions)
        parts, nfe, began = [], 0, time.perf_counter()
        for rows in torch.arange(len(noise)).split(self._batch_size):
            drawn = model.sample(noise[rows], evaluations, condition.rows(rows), generator=renoise, **how)
            parts.append(drawn.x.cpu())  # waits for the device, so the seconds are those of the work
            nfe = drawn.nfe
        return torch.cat(parts), nfe, time.perf_counter() - began

    def measure(self, samples: Tensor, seed: int) -> dict[str, float]:
        """Every measure of quality of drawn samples; `seed` is of the subsets compared with the test split."""
        return self._reference.measure(samples, seed)

    def floor(self, seed: int) -> dict[str, float]:
        """What real training data reach against real test data, at the same counts."""
        return self._reference.floor(seed)


def _reference(
    dataset: DataSet, config: schema.Config, features: Path, device: torch.device | str
) -> ImageReference | PointReference:
    if dataset.kind == "points":
        return PointReference(dataset.train.x, dataset.test.x, CHECKERBOARD_HALF_WIDTH)
    extractor = EXTRACTORS[config.features.kind](features, device)
    return ImageReference.of(dataset.train.x, dataset.test.x, extractor, config.evaluation.neighbours)


EXTRACTORS: dict[str, Callable[[Path, torch.device | str], FeatureExtractor]] = {
    "classifier": lambda folder, device: ClassifierFeatures(SmallClassifier.load(folder)),
    "pixels": lambda folder, device: PixelFeatures(),
    "inception": lambda folder, device: InceptionFeatures(device=str(device)),
}
