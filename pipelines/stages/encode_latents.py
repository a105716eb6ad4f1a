"""Encode the data set once: a Gaussian over latents for each image, in checked shards.

A shard is the unit of work: of W workers, worker r takes shards r, r + W, ... A shard that an interrupted attempt
finished is not encoded again, and the bytes depend neither on the attempts nor on the number of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ayf_core.data.codecs.base import Codec
from ayf_core.data.codecs.files import load_codec
from ayf_core.data.latent_shards import ShardNote, join, shard_is_whole, shard_name, write_manifest, write_shard
from ayf_core.data.latents import Batch, LatentDataset
from ayf_core.data.sets.base import DataSet, Split
from ayf_core.errors import Preempted
from ayf_core.training.context import TrainingContext
from pipelines.stages.job import Job, data_job

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings.experiment import Config

SHARD_SIZE = 8192
BATCH = 256


@dataclass(frozen=True)
class Shard:
    """Examples [first, last) of a split."""

    split: str
    number: int
    first: int
    last: int


def run(config: Config, stage: Stage) -> None:
    job = dataclasses.replace(data_job(config, stage), codec=stage.input("models/codec"))
    stage.train(encode, {"job": job, "shard_size": SHARD_SIZE})
    dataset, codec = job.dataset(), load_codec(stage.input("models/codec"))
    shape = codec.latent_shape(dataset.shape)
    shards = shards_of(dataset, SHARD_SIZE)
    for name in ("train", "test"):
        folder = stage.training_folder() / "final" / name
        notes = [ShardNote.load(_note(stage.training_folder(), shard)) for shard in shards if shard.split == name]
        write_manifest(folder, notes, shape, dataset.num_classes, codec.fingerprint)
        stage.run.log_values({f"{name}_latents": len(LatentDataset(folder))})
    stage.keep("data/latents")


def encode(settings: dict[str, Any], context: TrainingContext) -> dict[str, Any]:
    """This worker's shards. Every worker takes the same number of turns, so that a stop finds them together."""
    job: Job = settings["job"]
    assert job.codec is not None
    codec, dataset = load_codec(job.codec), job.dataset()
    if isinstance(codec, nn.Module):
        codec.to(context.device)
    shards = shards_of(dataset, settings["shard_size"])
    for done in range(0, len(shards), context.world_size):
        if context.stop_asked():
            raise Preempted(done)
        for shard in shards[done : done + context.world_size][context.rank : context.rank + 1]:
            encode_shard(shard, codec, dataset, context)
        finished = min(done + context.world_size, len(shards))
        context.log(finished, len(shards), {"shards": finished})
    return {"shards": len(shards)}


def shards_of(dataset: DataSet, size: int) -> list[Shard]:
    """The units of work, in order."""
    return [
        Shard(name, number, first, min(first + size, len(split)))
        for name, split in (("train", dataset.train), ("test", dataset.test))
        for number, first in enumerate(range(0, len(split), size))
    ]


def encode_shard(shard: Shard, codec: Codec, dataset: DataSet, context: TrainingContext) -> None:
    """Encode one shard, unless that was done; its note, written last, says that it is whole."""
    folder, note = context.folder / "final" / shard.split, _note(context.folder, shard)
    if shard_is_whole(folder, note):
        return
    split: Split = getattr(dataset, shard.split)
    latents = join(list(encoded(codec, split, shard.first, shard.last, context.device)))
    write_shard(folder, shard.number, latents, dataset.num_classes, shard.first).save(note)


def encoded(codec: Codec, split: Split, first: int, last: int, device: torch.device) -> Iterator[Batch]:
    """Mean, std and labels of examples [first, last), batch by batch, on the CPU."""
    for x, labels in zip(split.x[first:last].split(BATCH), split.labels[first:last].split(BATCH), strict=True):
        mean, std = codec.encode(x.to(device))
        yield mean.float().cpu(), std.float().cpu(), labels.to(torch.int64)


def _note(folder: Path, shard: Shard) -> Path:
    return folder / "notes" / shard.split / f"{shard_name(shard.number)}.json"
