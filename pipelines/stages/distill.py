"""Distil the (autoguided) teacher into a flow map, by the Eulerian or the Lagrangian objective."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ayf_core.flow_map import load_network
from ayf_core.networks import build_network, copy_shared_weights
from ayf_core.objectives import (
    Distillation,
    EulerianDistillation,
    GuidanceLaw,
    LagrangianDistillation,
    TangentSettings,
)
from ayf_core.randomness import StepRandom
from ayf_core.times import IntervalLaw
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import LatentData
from ayf_core.training.phases import Phase
from ayf_core.velocity import VelocityField, guided
from pipelines.execution.stage import Stage
from pipelines.execution.teacher_servers import served
from pipelines.settings import experiment as schema
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages.assembly import Job, finish, fit, keep_model, latent_job

OBJECTIVES = {"emd": EulerianDistillation, "lmd": LagrangianDistillation}


def run(config: schema.Config, stage: Stage) -> None:
    name = stage.item["objective"]
    job = latent_job(config, stage)
    result = stage.train(train, {"job": job, "distill": config.distill, "name": name, **teachers(stage)})
    stage.run.log_values({"parameters": result["parameters"], "tangent_error": result["tangent_error"]})
    keep_model(config, stage, f"models/{name}")


def teachers(stage: Stage) -> dict[str, Path]:
    """Where the two teachers are; read once here, so that a damaged one stops before any work."""
    folders = {name: stage.input(f"models/{name}") for name in ("teacher", "weak_teacher")}
    for folder in folders.values():
        load_network(folder)
    return folders


def train(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    job: Job = settings["job"]
    distill: schema.Distill = settings["distill"]
    training: schema.Training = getattr(distill, settings["name"]).training
    teacher, _ = load_network(settings["teacher"])
    guidance = guidance_law(distill.guidance)
    torch.manual_seed(job.seed)
    network = build_network(dataclasses.replace(teacher.spec, interval=True, guidance=guidance is not None))
    copy_shared_weights(teacher, network)
    data = LatentData(job.latent_dataset())
    with teacher_velocity(settings, distill.guidance.kind, context) as velocity:
        objective = distillation(distill, settings["name"], velocity)
        error = checked(objective, network, data, job, distill, context)
        phase = Phase(name=settings["name"], network=network, objective=objective)
        averages = fit([phase], data, training, job, context)
    result = finish(
        network,
        averages,
        training,
        job,
        context,
        role="flow_map",
        objective=settings["name"],
        guidance_range=guidance_range(distill.guidance),
    )
    return result | {"tangent_error": error}


def teacher_velocity(
    settings: dict[str, Any], kind: str, context: TrainingContext
) -> AbstractContextManager[VelocityField]:
    """The (guided) teacher beside the student, or on servers of its own where the runtime asks for some."""
    runtime: RuntimeConfig = settings["job"].runtime
    load = partial(load_guided, kind, settings["teacher"], settings["weak_teacher"])
    if runtime.teacher_workers == 0:
        return nullcontext(load(context.device))
    return served(
        load,
        context,
        count=runtime.teacher_workers,
        threads=runtime.threads_per_worker or torch.get_num_threads(),
        spread=runtime.spread,
    )


def load_guided(kind: str, teacher: Path, weak_teacher: Path, device: torch.device) -> VelocityField:
    strong, _ = load_network(teacher, device)
    weak, _ = load_network(weak_teacher, device)
    return guided(kind, strong, weak, strong.spec.num_classes)


def guidance_law(guidance: schema.Guidance) -> GuidanceLaw | None:
    if guidance.kind == "none":
        return None
    return GuidanceLaw(minimum=guidance.scale_min, maximum=guidance.scale_max)


def guidance_range(guidance: schema.Guidance) -> list[float] | None:
    return None if guidance.kind == "none" else [guidance.scale_min, guidance.scale_max]


def distillation(distill: schema.Distill, name: str, velocity: VelocityField) -> Distillation:
    tangent = distill.tangent
    steps = getattr(distill, name).training.steps
    return OBJECTIVES[name](
        teacher=velocity,
        time_law=IntervalLaw(**dataclasses.asdict(distill.time_law)),
        guidance=guidance_law(distill.guidance),
        weighting=distill.weighting,
        tangent=TangentSettings(
            backend=tangent.backend,
            warmup_max=tangent.warmup_max,
            warmup_steps=round(tangent.warmup_fraction * steps),
            normalise=tangent.normalise,
            normalisation_constant=tangent.normalisation_constant,
            divide_by_sqrt_dim=tangent.divide_by_sqrt_dim,
        ),
    )


def checked(
    objective: Distillation,
    network: nn.Module,
    data: LatentData,
    job: Job,
    distill: schema.Distill,
    context: TrainingContext,
) -> float:
    """The derivative engine's error on this network; refuses to train above the tolerance."""
    random = StepRandom(job.seed, 0, 2, device=context.device)
    read = {name: tensor.to(context.device) for name, tensor in data.read(torch.arange(2) % len(data)).items()}
    batch = data.batch(read, random)
    return objective.self_check(network.to(context.device), batch, random, distill.tangent.self_check_tolerance)
