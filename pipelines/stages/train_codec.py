"""Make the codec between data and latents: trained here, pretrained, or none at all, as the chosen one says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ayf_core.conditions import Condition
from ayf_core.data.codecs.base import CodecChoice
from ayf_core.errors import AyfError
from ayf_core.objectives.base import Batch, Loss
from ayf_core.randomness import StepRandom
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import TensorData
from ayf_core.training.phases import Phase
from pipelines.stages import components
from pipelines.stages.assembly import Job, data_job, fit

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema

SMALLEST_SIDE = 4
"""Of latent images: the discriminator that finishes a student takes no smaller ones."""


def run(config: schema.Config, stage: Stage) -> None:
    job = data_job(config, stage)
    codec = components.codec(config.codec)
    if codec.build().needs_training:
        result = stage.train(train, {"job": job, "codec": codec, "training": config.codec.training})
        stage.keep("models/codec")
        stage.run.log_values({"reconstruction_rmse": result["reconstruction_rmse"]})
    else:
        shape = job.dataset().shape
        made = codec.build().make(shape)
        check_latents(made.latent_shape(shape), config)
        made.save(stage.output("models/codec"))


def check_latents(shape: tuple[int, ...], config: schema.Config) -> None:
    """Raises AyfError where the networks to come could not take latents [C, H, W] of this shape."""
    if len(shape) != 3:
        return
    if min(shape[1:]) < SMALLEST_SIDE:
        raise AyfError(
            f"the codec makes latents of {shape[1]} x {shape[2]}, at least {SMALLEST_SIDE} x {SMALLEST_SIDE} are "
            "needed: raise data.image_size or choose a codec that halves the side less often"
        )
    for name, network in (("teacher", config.teacher.network), ("weak_teacher", config.weak_teacher.network)):
        if any(side % network.patch_size for side in shape[1:]):
            raise AyfError(
                f"{name}.network.patch_size = {network.patch_size}: the codec makes latents of "
                f"{shape[1]} x {shape[2]}; choose a divisor"
            )


@dataclass(frozen=True)
class Reconstruction:
    """Mean squared error of the reconstruction + kl_weight * KL."""

    latent_shape: tuple[int, ...]

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        value, metrics = network(batch.x, random.normal("posterior", self.latent_shape))
        return Loss(value, {"loss": value.detach(), **metrics})


def train(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    job: Job = settings["job"]
    training: schema.Training = settings["training"]
    dataset = job.dataset()
    choice: CodecChoice = settings["codec"].build()
    torch.manual_seed(job.seed)
    codec: Any = choice.make(dataset.shape)
    objective = Reconstruction(codec.latent_shape(dataset.shape))
    phase = Phase(name="codec", network=codec, objective=objective)
    data = TensorData(dataset.train.x, Condition(labels=dataset.train.labels))
    averages = fit([phase], data, training, job, context)
    codec.load_state_dict(averages.published())
    codec.eval().cpu()
    if context.rank == 0:
        codec.save(context.folder / "final")
    mean, _ = codec.encode(dataset.test.x)
    error = (codec.decode(mean) - dataset.test.x).square().mean().sqrt()
    return {"reconstruction_rmse": float(error)}
