"""Make the features that distances are measured in: a classifier is trained where the chosen ones ask for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ayf_core.conditions import Condition
from ayf_core.evaluation.features.real import write_real_features
from ayf_core.objectives.base import Batch, Loss
from ayf_core.randomness import StepRandom
from ayf_core.training.context import TrainingContext
from ayf_core.training.data import TensorData
from ayf_core.training.phases import Phase
from pipelines.stages.assembly import fit
from pipelines.stages.job import Job, data_job

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema

NOISE = 0.1
"""Standard deviation of the noise added to training images: features should not hang on single pixels."""


def run(config: schema.Config, stage: Stage) -> None:
    output = stage.output("models/features")
    output.mkdir(exist_ok=True)
    job = data_job(config, stage)
    features = job.features.build()
    if features.needs_training:
        result = stage.train(train, {"job": job})
        stage.keep("models/features")
        stage.run.log_values({"test_accuracy": result["test_accuracy"]})
    about = {"kind": job.features.kind, **features.record(output)}
    (output / "features.json").write_text(json.dumps(about) + "\n")
    # Weights that are missing or must be downloaded first stop here, not when everything is trained.
    extractor = features.extractor(output, stage.device)
    dataset = job.dataset()
    if len(dataset.shape) > 1:  # points are measured as they are
        write_real_features(output, extractor, {"train": dataset.train.x, "test": dataset.test.x})


def classification(network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
    """Cross-entropy of noisy images."""
    logits = network(batch.x + NOISE * random.normal("augmentation", batch.x.shape[1:]))
    loss = nn.functional.cross_entropy(logits, batch.condition["labels"])
    accuracy = (logits.argmax(dim=1) == batch.condition["labels"]).double().mean()
    return Loss(loss, {"loss": loss.detach(), "accuracy": accuracy})


def train(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    job: Job = settings["job"]
    dataset = job.dataset()
    features = job.features.build()
    torch.manual_seed(job.seed)
    classifier = features.new(dataset.shape, dataset.num_classes)
    phase = Phase(name="features", network=classifier, objective=classification)
    data = TensorData(dataset.train.x, Condition(labels=dataset.train.labels))
    averages = fit([phase], data, features.training, job, context)
    classifier.load_state_dict(averages.published())
    classifier.eval().cpu()
    if context.rank == 0:
        classifier.save(context.folder / "final")
    with torch.no_grad():
        correct = classifier(dataset.test.x).argmax(dim=1) == dataset.test.labels
    return {"test_accuracy": float(correct.double().mean())}
