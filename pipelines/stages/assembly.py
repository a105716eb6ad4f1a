"""What the training functions of the stages share: from settings to the library's objects, and the finished model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from ayf_core.conditions import ConditionSpec, class_labels
from ayf_core.data.latents import LatentDataset
from ayf_core.data.sets.base import DataSet
from ayf_core.data.verified import VerifiedFiles
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.spec import NetworkSpec
from ayf_core.registry import Chosen, find
from ayf_core.settings import settings_of
from ayf_core.training.artefact import save_model
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import TrainingData
from ayf_core.training.phases import Phase
from ayf_core.training.settings import LoopOptions, TrainingSettings
from ayf_core.training.trainer import Callback, Trainer
from pipelines.stages import components

if TYPE_CHECKING:
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
    """What a training function is told, beside its own settings; plain data that travels to the workers.

    Attributes:
        data, features, neighbours: the data set, and what it will be evaluated by.
    """

    seed: int
    runtime: RuntimeConfig
    data: Chosen
    features: Chosen
    neighbours: int
    latents: Path | None = None
    codec: Path | None = None
    watch: Watch | None = None

    def dataset(self) -> DataSet:
        """The images or points themselves. Raises AyfError where evaluation could not measure against them."""
        return components.load(self.data, self.seed, self.features, self.neighbours)

    def latent_dataset(self) -> LatentDataset:
        """The latents to train on."""
        assert self.latents is not None
        return LatentDataset(self.latents / "train")


def data_job(config: schema.Config, stage: Stage) -> Job:
    """The job of a stage that trains on the data themselves; whatever these are read from is watched."""
    job = _job(config, stage)
    stage.check_watched(job.data.build().reads())
    return job


def latent_job(config: schema.Config, stage: Stage) -> Job:
    """The job of a stage that trains on latents, whose checksums are verified before any work."""
    latents = stage.input("data/latents")
    remembered = VerifiedFiles(stage.root / "runs" / "verified")
    for split in ("train", "test"):
        LatentDataset(latents / split).verify(remembered)
    stage.run.log_dataset_input("data/latents", stage.digest("data/latents"))
    codec = stage.input("models/codec")
    return dataclasses.replace(_job(config, stage), latents=latents, codec=codec, watch=stage.watch)


def _job(config: schema.Config, stage: Stage) -> Job:
    return Job(
        seed=config.seed,
        runtime=stage.runtime,
        data=components.data_set(config.data),
        features=components.features(config.features),
        neighbours=config.evaluation.neighbours,
    )


def keep_model(config: schema.Config, stage: Stage, output: str) -> None:
    """Take the trained model as the stage's output, and register it, for example as `models:/digits-emd@current`."""
    folder = stage.keep(output)
    stage.run.register_model(folder, f"{config.data.name}-{folder.name}", "current")


def training_settings(training: schema.Training) -> TrainingSettings:
    """The library's own class of these settings."""
    return TrainingSettings(**dataclasses.asdict(training))


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
    network, settings = phases[0].network, training_settings(training)
    averages = FollowAverages(network, settings, context)
    followers: list[Callback] = [averages]
    if job.watch is not None:
        followers.append(job.watch(network, averages, training, job, context))
    runtime = job.runtime
    options = LoopOptions(
        micro_batch=runtime.micro_batch,
        log_every=runtime.log_every,
        checkpoint_every=runtime.checkpoint_every,
        sharding=runtime.sharding,
    )
    Trainer(phases, data, settings, context, followers, seed=job.seed, options=options).fit()
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
    weights = averages.published()
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
