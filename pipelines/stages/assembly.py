"""What the training functions of the stages share: from settings to the library's objects, and the finished model."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ayf_core.conditions import ConditionSpec, class_labels
from ayf_core.files import first_line
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.spec import NetworkSpec
from ayf_core.registry import Chosen
from ayf_core.training.artefact import save_model
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import TrainingData
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import Phase
from ayf_core.training.trainer import Callback, Trainer
from ayf_core.training_settings import TrainingSettings
from pipelines.stages.job import PREVIEW, Job

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema


def keep_model(config: schema.Config, stage: Stage, output: str) -> None:
    """Take the trained model as the stage's output, and register it, for example as `models:/digits-emd@current`."""
    folder = stage.keep(output)
    stage.show(stage.training_folder() / PREVIEW, folder.name, "samples")
    stage.run.register_model(folder, f"{config.data.kind}-{folder.name}", "current")


class LatentKind(Protocol):
    """What latents are like: all that a network has to know of them before it sees any."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def num_classes(self) -> int: ...


def data_conditions(latents: LatentKind) -> ConditionSpec:
    """What the samples of these latents are conditioned on."""
    return class_labels(latents.num_classes)


def network_spec(network: Chosen, latents: LatentKind) -> NetworkSpec:
    """A velocity network for these latents; it is told what distinguishes them."""
    return NetworkSpec(
        kind=network.kind,
        settings=dict(network.values),
        shape=tuple(latents.shape),
        conditions=data_conditions(latents).informative(),
    )


def fit(
    phases: list[Phase], data: TrainingData, training: TrainingSettings, job: Job, context: TrainingContext
) -> FollowAverages:
    """Train, and return the averages of the first phase's network."""
    network = phases[0].network
    averages = FollowAverages(network, training, context)
    followers: list[Callback] = [averages]
    if job.watch is not None:
        followers.append(job.watch(network, averages, training, job, context))
    runtime = job.runtime
    options = LoopOptions(
        micro_batch=runtime.micro_batch,
        log_every=runtime.log_every,
        checkpoint_every=runtime.checkpoint_every,
        sharding=runtime.sharding,
        compile=runtime.compile,
        activation_checkpointing=runtime.activation_checkpointing,
    )
    Trainer(phases, data, training, context, followers, seed=job.seed, options=options).fit()
    return averages


def finish(
    network: MeanVelocityNetwork,
    averages: FollowAverages,
    training: TrainingSettings,
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
        if job.preview:
            save_preview(context, "samples", context.folder / "final", context.device)
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}


def save_preview(context: TrainingContext, what: str, *given: Any) -> None:
    """Leave a picture of what was trained in its folder; one that cannot be drawn does not undo the training.

    Args:
        what: a function of `pipelines.stages.pictures`. By name, because pictures decide no result: what draws them is
            no part of a training's code, which a change of it would start anew.
        given: what that function takes.
    """
    try:
        getattr(import_module("pipelines.stages.pictures"), what)(*given).save(context.folder / PREVIEW)
    except Exception as error:
        print(f"no picture of what was trained: {first_line(error)}", file=sys.stderr)
