"""Encode the data set once: a Gaussian over latents for each image, in checked shards."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ayf_core.data.codecs import Codec, load_codec
from ayf_core.data.datasets import Split
from ayf_core.data.latents import LatentDataset, write_latents
from pipelines.config import Config
from pipelines.stage import Stage
from pipelines.training import data_job

SHARD_SIZE = 8192
BATCH = 256


def run(config: Config, stage: Stage) -> None:
    codec = load_codec(stage.input("models/codec"))
    dataset = data_job(config, stage).dataset()
    shape = codec.latent_shape(dataset.train.x.shape[1:])
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        folder = stage.output("data/latents") / name
        batches = encoded(codec, split)
        write_latents(folder, batches, shape, dataset.num_classes, codec.fingerprint, SHARD_SIZE)
        stage.run.log_values({f"{name}_latents": len(LatentDataset(folder))})


def encoded(codec: Codec, split: Split) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for x, labels in zip(split.x.split(BATCH), split.labels.split(BATCH), strict=True):
        mean, std = codec.encode(x)
        yield mean, std, labels
