"""Distil the (guided) teacher into a flow map, by one of the objectives that need a teacher."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ayf_core.guidance.scale import GuidanceLaw
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.build import build_network, copy_shared_weights
from ayf_core.networks.files import load_network
from ayf_core.objectives.flow_map import FlowMapObjective
from ayf_core.precision import compute_in, matrix_products
from ayf_core.randomness import StepRandom
from ayf_core.registry import find
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import LatentData
from ayf_core.training.phases import Phase
from ayf_core.training.running import run_network
from ayf_core.velocity import VelocityField
from pipelines.stages.assembly import finish, fit, keep_model, network_spec
from pipelines.stages.job import Job, latent_job

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema
    from pipelines.settings.runtime import RuntimeConfig


def run(config: schema.Config, stage: Stage) -> None:
    name = stage.item["objective"]
    job = latent_job(config, stage)
    settings = {"job": job, "distill": config.distill, "name": name, **teachers(stage)}
    result = stage.train(train, settings)
    stage.run.log_values({"parameters": result["parameters"], "tangent_error": result["tangent_error"]})
    keep_model(config, stage, f"models/{name}")


def teachers(stage: Stage) -> dict[str, Any]:
    """Where the two teachers are, and what can serve them elsewhere than beside the student.

    They are read once here, so that a damaged one stops before any work.
    """
    folders = {name: stage.input(f"models/{name}") for name in ("teacher", "weak_teacher")}
    for folder in folders.values():
        load_network(folder)
    return {**folders, "serve": stage.serve_teachers}


def train(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    job: Job = settings["job"]
    distill: schema.Distill = settings["distill"]
    name: str = settings["name"]
    training = distill.students[name].training
    limits = guidance_of(distill, name).range
    network = start(settings, guided=limits is not None)
    compute_in(training.precision, network)  # its derivative is judged in the arithmetic it is trained in
    data = LatentData(job.latent_dataset())
    with teacher_velocity(settings, distill, name, training.precision, context) as velocity:
        objective = distillation(distill, name, velocity, training.steps)
        with matrix_products(training.precision):
            error = checked(objective, network, data, job, context)
        phase = Phase(name=name, network=network, objective=objective)
        averages = fit([phase], data, training, job, context)
    result = finish(network, averages, training, job, context, role="flow_map", objective=name, guidance=limits)
    return result | {"tangent_error": error}


def start(settings: dict[str, Any], guided: bool) -> MeanVelocityNetwork:
    """The flow map's network before training: the teacher's velocity, or fresh weights where there is no teacher."""
    job: Job = settings["job"]
    if "teacher" not in settings:
        torch.manual_seed(job.seed)
        spec = network_spec(settings["network"], job.latent_dataset())
        return build_network(dataclasses.replace(spec, interval=True, guidance=guided))
    teacher, _ = load_network(settings["teacher"])
    torch.manual_seed(job.seed)
    network = build_network(dataclasses.replace(teacher.spec, interval=True, guidance=guided))
    copy_shared_weights(teacher, network)
    return network


def teacher_velocity(
    settings: dict[str, Any], distill: schema.Distill, name: str, precision: str, context: TrainingContext
) -> AbstractContextManager[VelocityField | None]:
    """The (guided) teacher beside the student, or on servers of its own where the runtime asks for some.

    None for an objective that needs no teacher.
    """
    if not needs_teacher(name):
        return nullcontext(None)
    runtime: RuntimeConfig = settings["job"].runtime
    load = partial(
        load_guided, distill.guidance.kind, settings["teacher"], settings["weak_teacher"], precision, runtime.compile
    )
    if runtime.teacher_workers == 0:
        return nullcontext(load(context.device))
    return settings["serve"](
        load,
        context,
        count=runtime.teacher_workers,
        threads=runtime.threads_per_worker or torch.get_num_threads(),
        spread=runtime.spread,
    )


def needs_teacher(objective: str) -> bool:
    """Whether an objective learns from a teacher's velocity, or from the data alone."""
    return bool(find("objective", objective).facts["needs_teacher"])


def load_guided(
    kind: str, teacher: Path, weak_teacher: Path, precision: str, compiled: bool, device: torch.device
) -> VelocityField:
    """The velocity of the teacher under a kind of guidance; travels to the teacher servers."""
    strong, _ = load_network(teacher, device)
    weak, _ = load_network(weak_teacher, device)
    for network in (strong, weak):
        compute_in(precision, network)
        run_network(network, compiled=compiled)
    return find("guidance", kind).load().build(strong, weak, strong.spec.conditions)


def guidance_of(distill: schema.Distill, objective: str) -> GuidanceLaw:
    """The kind of guidance with the law of its scale; none for an objective without a teacher to guide."""
    return distill.guidance.build() if needs_teacher(objective) else find("guidance", "none").load()()


def distillation(distill: schema.Distill, name: str, velocity: VelocityField | None, steps: int) -> FlowMapObjective:
    """The objective of this name, for a training of so many steps."""
    given: dict[str, Any] = {"teacher": velocity, "guidance": guidance_of(distill, name)} if needs_teacher(name) else {}
    return distill.students[name].component.build(
        time_law=distill.time_law.build(),
        tangent=distill.tangent,
        weighting=distill.weighting,
        steps=steps,
        **given,
    )


def checked(
    objective: FlowMapObjective, network: nn.Module, data: LatentData, job: Job, context: TrainingContext
) -> float:
    """The derivative engine's error on this network; refuses to train above the tolerance."""
    random = StepRandom(job.seed, 0, 2, device=context.device)
    read = {name: tensor.to(context.device) for name, tensor in data.read(torch.arange(2) % len(data)).items()}
    batch = data.batch(read, random)
    return objective.self_check(network.to(context.device), batch, random, job.runtime.compile)
