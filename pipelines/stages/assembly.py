"""What the training functions of the stages share: from settings to the library's objects, and the finished model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ayf_core.conditions import ConditionSpec, class_labels
from ayf_core.data.datasets import DataSet, load_dataset
from ayf_core.data.latents import LatentDataset
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.spec import NetworkSpec
from ayf_core.registry import find
from ayf_core.settings import settings_of
from ayf_core.training.artefact import save_model
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import TrainingData
from ayf_core.training.optimisers import OptimiserSettings
from ayf_core.training.shards import gathered
from ayf_core.training.trainer import Callback, LoopSettings, Phase, Trainer
from pipelines.execution.stage import Stage
from pipelines.settings import experiment as schema
from pipelines.settings.runtime import RuntimeConfig


class Watch(Protocol):
    """Something that wants to follow a generator's training without changing it; travels to the workers."""

    def __call__(
        self,
        network: nn.Module,
        averages: FollowAverages,
        training: schema.Training,
        job: Job,
        context: TrainingContext,
    ) -> Callback: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a training function is told, beside its own settings; plain data that travels to the workers."""

    seed: int
    runtime: RuntimeConfig
    data: schema.Data
    latents: Path | None = None
    codec: Path | None = None
    watch: Watch | None = None

    def dataset(self) -> DataSet:
        """The images or points themselves."""
        return load_dataset(seed=self.seed, **dataclasses.asdict(self.data))

    def latent_dataset(self) -> LatentDataset:
        """The latents to train on."""
        assert self.latents is not None
        return LatentDataset(self.latents / "train")


def data_job(config: schema.Config, stage: Stage) -> Job:
    """The job of a stage that trains on the data themselves."""
    return Job(seed=config.seed, runtime=stage.runtime, data=config.data)


def latent_job(config: schema.Config, stage: Stage) -> Job:
    """The job of a stage that trains on latents, whose checksums are verified before any work."""
    latents = stage.input("data/latents")
    for split in ("train", "test"):
        LatentDataset(latents / split).verify()
    stage.run.log_dataset_input("data/latents", stage.digest("data/latents"))
    codec = stage.input("models/codec")
    return dataclasses.replace(data_job(config, stage), latents=latents, codec=codec, watch=stage.watch)


def keep_model(config: schema.Config, stage: Stage, output: str) -> None:
    """Take the trained model as the stage's output, and register it, for example as `models:/digits-emd@current`."""
    folder = stage.keep(output)
    stage.run.register_model(folder, f"{config.data.name}-{folder.name}", "current")


def optimiser(training: schema.Training, learning_rate: float | None = None) -> OptimiserSettings:
    return OptimiserSettings(
        learning_rate=learning_rate or training.learning_rate,
        beta1=training.beta1,
        beta2=training.beta2,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_steps,
        schedule=training.schedule,
        gradient_clip=training.gradient_clip,
    )


def data_conditions(latents: LatentDataset) -> ConditionSpec:
    """What the samples of these latents are conditioned on."""
    return class_labels(latents.num_classes)


def network_spec(network: schema.Network, latents: LatentDataset) -> NetworkSpec:
    """A velocity network for these latents; it is told what distinguishes them."""
    kind = find("network", network.kind).load()
    return NetworkSpec(
        kind=network.kind,
        settings={name: getattr(network, name) for name in settings_of(kind)},
        shape=tuple(latents.shape),
        conditions=data_conditions(latents).informative(),
    )


def fit(
    phases: list[Phase], data: TrainingData, training: schema.Training, job: Job, context: TrainingContext
) -> FollowAverages:
    """Train, and return the averages of the first phase's network."""
    network = phases[0].network
    averages = FollowAverages(network, training.ema_stds, context, training.steps)
    followers: list[Callback] = [averages]
    if job.watch is not None:
        followers.append(job.watch(network, averages, training, job, context))
    loop = LoopSettings(
        steps=training.steps,
        batch_size=training.batch_size,
        seed=job.seed,
        micro_batch=job.runtime.micro_batch,
        log_every=job.runtime.log_every,
        checkpoint_every=job.runtime.checkpoint_every,
        sharding=job.runtime.sharding,
    )
    Trainer(phases, data, loop, context, followers).fit()
    return averages


def finish(
    network: MeanVelocityNetwork,
    averages: FollowAverages,
    training: schema.Training,
    job: Job,
    context: TrainingContext,
    *,
    role: str,
    guidance: GuidanceRange | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Rank 0 writes the averaged model with its codec and EMA snapshots; returns what the driver logs.

    Args:
        role: 'velocity' or 'flow_map', which says how the model is sampled.
        guidance: the guidance scales that the model learnt.
        details: more for `model.json`.
    """
    weights = gathered(averages.ema.weights(training.ema_std), keep=context.rank == 0)
    if context.rank == 0:
        assert job.codec is not None
        save_model(
            context.folder / "final",
            network,
            weights,
            role=role,
            codec=job.codec,
            space=job.latent_dataset().space,
            snapshots=averages.folder,
            ema_std=training.ema_std,
            guidance=guidance,
            **details,
        )
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}
