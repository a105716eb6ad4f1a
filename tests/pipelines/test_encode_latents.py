"""Encoding by shards: the same bytes whoever encodes them, and nothing twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from ayf_core.data.codecs.identity import IdentityCodec
from ayf_core.data.latent_shards import ShardNote, write_latents, write_manifest
from ayf_core.data.latents import LatentDataset
from ayf_core.errors import AyfError, Preempted
from ayf_core.registry import Chosen, find
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages import encode_latents
from pipelines.stages.encode_latents import encode, shards_of
from pipelines.stages.job import Job

SHARD = 100


@dataclasses.dataclass
class Worker:
    """One of several, without a process of its own: encoding needs no word from the others."""

    folder: Path
    rank: int = 0
    world_size: int = 1
    stop_at: int = 10**6
    turns: int = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def stop_asked(self) -> bool:
        self.turns += 1
        return self.turns > self.stop_at

    def log(self, step: int, total: int, metrics: dict[str, float]) -> None: ...


@pytest.fixture
def job(tmp_path: Path) -> Job:
    IdentityCodec().save(tmp_path / "codec")
    return Job(
        seed=0,
        runtime=RuntimeConfig(),
        data=Chosen(find("data set", "checkerboard"), {"size": 700, "test_fraction": 0.2}),
        features=Chosen(find("features", "pixels")),
        neighbours=5,
        codec=tmp_path / "codec",
    )


def manifest_of(folder: Path, job: Job) -> dict[str, bytes]:
    """What the stage would publish of the training split, by file."""
    shards = [shard for shard in shards_of(job.dataset(), SHARD) if shard.split == "train"]
    notes = [ShardNote.load(encode_latents._note(folder, shard)) for shard in shards]
    write_manifest(folder / "final/train", notes, (2,), job.dataset().num_classes, "identity")
    return {file.name: file.read_bytes() for file in sorted((folder / "final/train").iterdir())}


def run(folder: Path, job: Job, workers: int = 1) -> dict[str, bytes]:
    for rank in reversed(range(workers)):
        encode({"job": job, "shard_size": SHARD}, Worker(folder, rank, workers))
    return manifest_of(folder, job)


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, job: Job) -> None:
    alone = run(tmp_path / "alone", job)
    assert sum(name.startswith("shard_") for name in alone) == 6
    assert alone == run(tmp_path / "two", job, 2) == run(tmp_path / "four", job, 4)
    LatentDataset(tmp_path / "alone/final/train").verify()


def test_shards_are_those_that_one_writer_would_write(tmp_path: Path, job: Job) -> None:
    train = job.dataset().train
    write_latents(tmp_path / "plain", [(train.x, torch.zeros_like(train.x), train.labels)], (2,), 1, "identity", SHARD)
    plain = {file.name: file.read_bytes() for file in sorted((tmp_path / "plain").iterdir())}
    assert run(tmp_path / "shards", job) == plain


def test_what_an_interrupted_attempt_finished_is_not_encoded_again(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tmp_path / "quiet", job)
    encoded: list[int] = []
    write_shard = encode_latents.write_shard

    def noting(folder, number, latents, num_classes, first):
        encoded.append(number)
        return write_shard(folder, number, latents, num_classes, first)

    monkeypatch.setattr(encode_latents, "write_shard", noting)
    place = tmp_path / "stopped"
    with pytest.raises(Preempted):
        encode({"job": job, "shard_size": SHARD}, Worker(place, stop_at=3))
    assert encoded == [0, 1, 2]
    assert run(place, job) == expected
    assert encoded == [0, 1, 2, 3, 4, 5, 0, 1]  # and the test split


@pytest.mark.parametrize("damage", ["flip", "cut", "lost"])
def test_a_damaged_shard_is_encoded_again(tmp_path: Path, job: Job, damage: str) -> None:
    expected = run(tmp_path, job)
    shard = tmp_path / "final/train/shard_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()
    if damage != "lost":
        shard.write_bytes(content if damage == "flip" else content[:-5])
    assert run(tmp_path, job) == expected


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="the data set is empty"):
        write_manifest(tmp_path, [], (2,), 2, "identity")
