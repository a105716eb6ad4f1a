"""Measures a model while it trains, as `evaluate` will when it is finished: what weak trials are stopped by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ayf_core.data.codecs.files import load_codec
from ayf_core.networks.build import build_network
from ayf_core.sampling.generator import Generator
from ayf_core.sampling.samplers import sampler_of
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import TrainingContext
from ayf_core.training_settings import TrainingSettings
from pipelines.settings import experiment as schema
from pipelines.stages.bench import Bench
from pipelines.stages.job import Job
from sweeps.definition import Metric


@dataclass(frozen=True, kw_only=True)
class QualityWatch:
    """A `Watch` that logs the metrics of a sweep every so many steps and at the last one.

    The draws have generators of their own, so training goes on to the same bytes as without it.
    """

    config: schema.Config
    features: Path
    metrics: tuple[Metric, ...]
    every: int
    guidance_scale: float | None

    def __call__(
        self,
        network: nn.Module,
        averages: FollowAverages,
        training: TrainingSettings,
        job: Job,
        context: TrainingContext,
    ) -> _Measurements:
        return _Measurements(self, network, averages, training, job, context)


class _Measurements:
    """The follower of one training. Every rank helps to gather the average, rank 0 measures it: the others wait at the
    next gradient.
    """

    name = "quality"

    def __init__(
        self,
        watch: QualityWatch,
        network: Any,
        averages: FollowAverages,
        training: TrainingSettings,
        job: Job,
        context: TrainingContext,
    ) -> None:
        self.watch = watch
        self.network = network
        self.averages = averages
        self.training = training
        self.job = job
        self.context = context
        self.bench: Bench | None = None

    def after_step(self, step: int) -> None:
        if step % self.watch.every and step != self.training.steps:
            return
        weights = self.averages.published()
        if self.context.rank == 0:
            self.context.log(step, self.training.steps, self.measure(weights))

    def measure(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Each metric as the mean over the evaluation's sampling seeds."""
        bench = self.bench = self.bench or Bench(self.watch.config, self.watch.features, self.context.device)
        generator = self.generator(weights)
        measured = {}
        seeds = range(self.watch.config.evaluation.seeds)
        for nfe in sorted({metric.nfe for metric in self.watch.metrics}):
            drawn = [bench.draw(generator, nfe, seed, guidance_scale=self.watch.guidance_scale)[0] for seed in seeds]
            found = [bench.measure(x, seed) for x, seed in zip(drawn, seeds, strict=True)]
            for metric in self.watch.metrics:
                if metric.nfe == nfe:
                    measured[metric.name] = math.fsum(values[metric.measure] for values in found) / len(found)
        return measured

    def generator(self, weights: dict[str, Tensor]) -> Generator:
        """The averaged model as `finish` would publish it now."""
        assert self.job.codec is not None
        spec = self.network.spec
        with torch.random.fork_rng():
            network = build_network(spec)
        network.load_state_dict(weights)
        codec = load_codec(self.job.codec)
        if isinstance(codec, nn.Module):
            codec.to(self.context.device)
        role = "flow_map" if spec.interval else "velocity"
        limits = self.watch.config.distill.guidance.build().range if spec.guidance else None
        network = network.eval().requires_grad_(False).to(self.context.device)
        return Generator(sampler_of(role, network, limits), codec, self.job.latent_dataset().space, {})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to remember: what was measured stands in the log."""
