"""Make the codec between data and latents: trained here, pretrained, or none at all, as the chosen one says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.networks.discriminator import check_shape
from ayf_core.objectives.base import Batch, Loss
from ayf_core.randomness import StepRandom
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import TensorData
from ayf_core.training.phases import Phase
from pipelines.stages.assembly import fit, save_preview
from pipelines.stages.job import PREVIEW, Job, data_job

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema


def run(config: schema.Config, stage: Stage) -> None:
    job = data_job(config, stage)
    codec = config.codec.build()
    if codec.needs_training:
        result = stage.train(train, {"job": job, "codec": codec})
        stage.keep("models/codec")
        picture = stage.training_folder() / PREVIEW
        stage.show(picture, "codec", "real images above, decoded ones below")
        stage.run.log_values({"reconstruction_rmse": result["reconstruction_rmse"]})
    else:
        shape = job.dataset().shape
        made = codec.make(shape)
        check_latents(made.latent_shape(shape), config)
        made.save(stage.output("models/codec"))


def check_latents(shape: tuple[int, ...], config: schema.Config) -> None:
    """Raises AyfError where the networks to come could not take latents of this shape."""
    for name, teacher in (("teacher", config.teacher), ("weak_teacher", config.weak_teacher)):
        try:
            teacher.network.build().check(shape)
        except AyfError as error:
            raise AyfError(f"{name}.network: {error}; the codec's latents are {list(shape)}") from error
    check_shape(shape)


@dataclass(frozen=True)
class Reconstruction:
    """Mean squared error of the reconstruction + kl_weight * KL."""

    latent_shape: tuple[int, ...]

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        value, metrics = network(batch.x, random.normal("posterior", self.latent_shape))
        return Loss(value, {"loss": value.detach(), **metrics})


def train(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    job: Job = settings["job"]
    dataset = job.dataset()
    choice: Any = settings["codec"]
    torch.manual_seed(job.seed)
    codec: Any = choice.make(dataset.shape)
    objective = Reconstruction(codec.latent_shape(dataset.shape))
    phase = Phase(name="codec", network=codec, objective=objective)
    data = TensorData(dataset.train.x, Condition(labels=dataset.train.labels))
    averages = fit([phase], data, choice.training, job, context)
    codec.load_state_dict(averages.published())
    codec.eval().cpu()
    if context.rank == 0:
        codec.save(context.folder / "final")
        if job.preview and len(dataset.shape) == 3:
            save_preview(context, "reconstructions", codec, dataset.test.x)
    mean, _ = codec.encode(dataset.test.x)
    error = (codec.decode(mean) - dataset.test.x).square().mean().sqrt()
    return {"reconstruction_rmse": float(error)}
