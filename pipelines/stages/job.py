"""What a stage's training function is told, and the data that it trains on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import nn

from ayf_core.data.latents import LatentDataset
from ayf_core.data.sets.base import DataSet
from ayf_core.data.verified import VerifiedFiles
from ayf_core.evaluation.counts import check_counts
from ayf_core.registry import Chosen

if TYPE_CHECKING:
    from ayf_core.training.callbacks import FollowAverages
    from ayf_core.training.context import TrainingContext
    from ayf_core.training.trainer import Callback
    from ayf_core.training_settings import TrainingSettings
    from pipelines.execution.stage import Stage
    from pipelines.settings import experiment as schema
    from pipelines.settings.runtime import RuntimeConfig


PREVIEW = "preview.png"
"""In a training's folder: a picture of what was trained."""


class Watch(Protocol):
    """Something that wants to follow a generator's training without changing it; travels to the workers."""

    def __call__(
        self,
        network: nn.Module,
        averages: FollowAverages,
        training: TrainingSettings,
        job: Job,
        context: TrainingContext,
    ) -> Callback: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a training function is told, beside its own settings; plain data that travels to the workers.

    Attributes:
        data, features, neighbours: the data set, and what it will be evaluated by.
        preview: whether to leave a picture of what was trained, `PREVIEW`, in the training's folder.
    """

    seed: int
    runtime: RuntimeConfig
    data: Chosen
    features: Chosen
    neighbours: int
    latents: Path | None = None
    codec: Path | None = None
    watch: Watch | None = None
    preview: bool = False

    def dataset(self) -> DataSet:
        """The images or points themselves. Raises AyfError where evaluation could not measure against them."""
        return load(self.data, self.seed, self.features, self.neighbours)

    def latent_dataset(self) -> LatentDataset:
        """The latents to train on."""
        assert self.latents is not None
        return LatentDataset(self.latents / "train")


def load(data: Chosen, seed: int, features: Chosen, neighbours: int) -> DataSet:
    """The data set, of which evaluation will be able to measure samples.

    Whatever reads the data first stops here, before any training, with what evaluation would say at the end.

    Raises:
        AyfError: as the data set does, or because features or counts do not suit the data.
    """
    dataset: DataSet = data.build().load(seed)
    features.build().check(dataset.shape, dataset.num_classes)
    check_counts(dataset.train.x, dataset.test.x, neighbours)
    return dataset


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
        data=config.data,
        features=config.features,
        neighbours=config.evaluation.neighbours,
        preview=stage.shows_pictures,
    )
