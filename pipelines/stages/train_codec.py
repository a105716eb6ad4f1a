"""Train the codec that turns images into latents, or name a pretrained one, or pass pixels and points through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ayf_core.conditions import Condition
from ayf_core.data.codecs import AutoencoderKLCodec, IdentityCodec
from ayf_core.objectives.base import Batch, Loss
from ayf_core.randomness import StepRandom
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import TensorData
from ayf_core.training.trainer import Phase
from pipelines.execution.stage import Stage
from pipelines.settings import experiment as schema
from pipelines.stages.assembly import Job, data_job, fit, optimiser


def run(config: schema.Config, stage: Stage) -> None:
    job = data_job(config, stage)
    if config.codec.kind == "identity":
        IdentityCodec().save(stage.output("models/codec"))
    elif config.codec.pretrained is not None:
        images = job.dataset().train.x
        codec = AutoencoderKLCodec.from_pretrained(config.codec.pretrained, image_channels=images.shape[1])
        codec.latent_shape(images.shape[1:])
        codec.save(stage.output("models/codec"))
    else:
        result = stage.train(train, {"job": job, "codec": config.codec})
        stage.keep("models/codec")
        stage.run.log_values({"reconstruction_rmse": result["reconstruction_rmse"]})


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
    codec_settings: schema.Codec = settings["codec"]
    torch.manual_seed(job.seed)
    codec = AutoencoderKLCodec.create(
        image_channels=dataset.train.x.shape[1],
        latent_channels=codec_settings.latent_channels,
        channels=codec_settings.channels,
        layers_per_block=codec_settings.layers_per_block,
        norm_num_groups=schema.NORM_GROUPS,
        kl_weight=codec_settings.kl_weight,
    )
    objective = Reconstruction(codec.latent_shape(dataset.train.x.shape[1:]))
    phase = Phase("codec", codec, objective, optimiser(codec_settings.training))
    data = TensorData(dataset.train.x, Condition(labels=dataset.train.labels))
    averages = fit([phase], data, codec_settings.training, job, context)
    codec.load_state_dict(averages.ema.weights(codec_settings.training.ema_std))
    codec.eval().cpu()
    if context.rank == 0:
        codec.save(context.folder / "final")
    mean, _ = codec.encode(dataset.test.x)
    error = (codec.decode(mean) - dataset.test.x).square().mean().sqrt()
    return {"reconstruction_rmse": float(error)}
