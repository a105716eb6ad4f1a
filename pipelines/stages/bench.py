"""The test bench: the real data of an experiment, and how samples of any model are drawn and compared with them.

Evaluation, sweeps and the tuning of sampling all measure here, so that the same number means the same thing
everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.evaluation.catalogue import headline
from ayf_core.evaluation.features.real import real_features
from ayf_core.evaluation.quality import ImageReference, PointReference
from ayf_core.sampling.generator import Generator
from pipelines.stages.job import load

if TYPE_CHECKING:
    from pipelines.settings import experiment as schema


ROWS_ON_CPU = 128
"""Most images drawn at once on a CPU: more do not stay in its caches, and their memory is asked for anew each time."""


class Bench:
    """Draws samples of a model and measures them against the experiment's real data.

    Args:
        config: the data, their features and the sizes of the evaluation.
        features: the folder `models/features`.
        device: where a network of features computes.

    Attributes:
        distance: the headline measure of the data set.
        condition: of the training data, in order: each is drawn once.
    """

    def __init__(self, config: schema.Config, features: Path, device: torch.device | str = "cpu") -> None:
        neighbours = config.evaluation.neighbours
        dataset = load(config.data, config.seed, config.features, neighbours)
        self.condition = Condition(labels=dataset.train.labels)
        self._count = len(dataset.train)
        self.distance = headline(config.data.kind)
        self._batch_size = config.evaluation.batch_size
        self._reference: ImageReference | PointReference
        if len(dataset.shape) == 1:
            self._reference = PointReference(dataset.train.x, dataset.test.x, dataset.half_width)
        else:
            extractor = config.features.build().extractor(features, device)
            known = real_features(features, extractor, {"train": dataset.train.x, "test": dataset.test.x})
            self._reference = ImageReference(extractor, known["train"], known["test"], neighbours)

    def draw(
        self, model: Generator, evaluations: int, seed: int, check: Callable[[], None] = lambda: None, **how: Any
    ) -> tuple[Tensor, int, float]:
        """As many samples as there are training data, with their conditions: samples, evaluations spent, seconds.

        Args:
            seed: of the noise; the same seed gives every model of the same shape the same noise.
            check: called before each batch; may raise.
            how: what `Generator.sample` takes besides, such as `guidance_scale` and `gamma`.
        """
        noise = model.draw_noise(self._count, seed=1000 + seed)
        renoise = torch.Generator().manual_seed(2000 + seed)
        condition = self.condition.only(model.spec.conditions)
        parts, nfe, began = [], 0, time.perf_counter()
        for rows in torch.arange(len(noise)).split(self._rows_at_once(noise, **how)):
            check()
            drawn = model.sample(noise[rows], evaluations, condition.rows(rows), generator=renoise, **how)
            parts.append(drawn.x.cpu())  # waits for the device, so the seconds are those of the work
            nfe = drawn.nfe
        return torch.cat(parts), nfe, time.perf_counter() - began

    def _rows_at_once(self, noise: Tensor, gamma: float = 0.0, **how: Any) -> int:
        # γ-sampling draws its noise batch by batch: there, other batches are another result.
        small = noise.device.type == "cpu" and noise.ndim > 2 and not gamma
        return min(self._batch_size, ROWS_ON_CPU) if small else self._batch_size

    def measure(self, samples: Tensor, seed: int) -> dict[str, float]:
        """Every measure of quality of drawn samples; `seed` is of the subsets compared with the test split."""
        return self._reference.measure(samples, seed)

    def floor(self, seed: int) -> dict[str, float]:
        """What real training data reach against real test data, at the same counts."""
        return self._reference.floor(seed)
