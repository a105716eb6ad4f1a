"""Finish a student adversarially: distillation goes on, a discriminator sharpens the one-step samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ayf_core.guidance.scale import UNGUIDED, GuidanceRange
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.discriminator import build_discriminator
from ayf_core.networks.files import load_network
from ayf_core.objectives.adversarial_finish import AdversarialFinish, DiscriminatorObjective
from ayf_core.objectives.flow_map import FlowMapObjective
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import LatentData
from ayf_core.training.phases import Phase
from pipelines.stages.assembly import LatentKind, data_conditions, finish, fit, keep_model
from pipelines.stages.distill import distillation, teacher_velocity, teachers
from pipelines.stages.job import latent_job

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema


def run(config: schema.Config, stage: Stage) -> None:
    student = stage.input(f"models/{config.adversarial.student}")
    load_network(student)
    job = latent_job(config, stage)
    settings = {
        "job": job,
        "distill": config.distill,
        "adversarial": config.adversarial,
        "student": student,
        **teachers(stage),
    }
    result = stage.train(train, settings)
    stage.run.log_values({"parameters": result["parameters"]})
    keep_model(config, stage, "models/adversarial")


def train(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    job = settings["job"]
    distill: schema.Distill = settings["distill"]
    adversarial: schema.Adversarial = settings["adversarial"]
    network, card = load_network(settings["student"], context.device)
    network.requires_grad_(True)
    torch.manual_seed(job.seed)
    latents = job.latent_dataset()
    discriminator = discriminator_for(adversarial, network, latents).to(context.device)
    limits = GuidanceRange.from_list(card["guidance_range"])
    training = adversarial.training
    with teacher_velocity(settings, distill, card["objective"], training.precision, context) as velocity:
        distilled = distillation(distill, card["objective"], velocity, training.steps)
        phases = adversarial_phases(adversarial, distilled, network, discriminator, limits)
        averages = fit(phases, LatentData(latents), training, job, context)
    return finish(
        network,
        averages,
        training,
        job,
        context,
        role="flow_map",
        objective=card["objective"],
        guidance=limits,
    )


def discriminator_for(adversarial: schema.Adversarial, network: MeanVelocityNetwork, latents: LatentKind) -> nn.Module:
    """A fresh discriminator of the network's samples."""
    return build_discriminator(
        network.spec.shape, width=adversarial.discriminator.width, conditions=data_conditions(latents)
    )


def adversarial_phases(
    adversarial: schema.Adversarial,
    distilled: FlowMapObjective,
    network: MeanVelocityNetwork,
    discriminator: nn.Module,
    limits: GuidanceRange | None,
) -> list[Phase]:
    """The student and its discriminator, in turn.

    Args:
        distilled: the objective that trained the student.
        limits: the guidance scales that the student learnt.
    """
    # Unguided asks for the data's own law, which is what the discriminator sees.
    scale = None if limits is None else limits.clamp(UNGUIDED)
    sharpened = AdversarialFinish(
        distillation=distilled.past_warmup(),
        discriminator=discriminator,
        weight=adversarial.weight,
        guidance_scale=scale,
    )
    judge = DiscriminatorObjective(generator=network, r1=adversarial.r1, r2=adversarial.r2, guidance_scale=scale)
    return [
        Phase(name="student", network=network, objective=sharpened),
        Phase(
            name="discriminator",
            network=discriminator,
            objective=judge,
            differentiated_twice=True,  # by its penalties on gradients
            learning_rate=adversarial.discriminator_learning_rate,
        ),
    ]
