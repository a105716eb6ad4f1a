"""Train the teacher by flow matching; `train_weak_teacher` is the same with its own settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import LatentData
from ayf_core.training.phases import Phase
from pipelines.stages.assembly import finish, fit, keep_model, network_spec
from pipelines.stages.job import Job, latent_job

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema


def run(config: schema.Config, stage: Stage) -> None:
    train_velocity(config.teacher, "teacher", config, stage)


def train_velocity(settings: schema.Teacher, name: str, config: schema.Config, stage: Stage) -> None:
    job = latent_job(config, stage)
    result = stage.train(train, {"job": job, "teacher": settings, "name": name})
    stage.run.log_values({"parameters": result["parameters"]})
    keep_model(config, stage, f"models/{name}")


def train(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    job: Job = settings["job"]
    teacher: schema.Teacher = settings["teacher"]
    latents = job.latent_dataset()
    torch.manual_seed(job.seed)
    network = build_network(network_spec(teacher.network, latents))
    phase = Phase(name=settings["name"], network=network, objective=flow_matching(teacher, network.spec))
    averages = fit([phase], LatentData(latents), teacher.training, job, context)
    return finish(network, averages, teacher.training, job, context, role="velocity")


def flow_matching(teacher: schema.Teacher, spec: NetworkSpec) -> FlowMatching:
    """What a network of this spec is trained by."""
    return FlowMatching(
        time_law=teacher.time_law.build(),
        conditions=spec.conditions,
        label_dropout=teacher.label_dropout,
    )
