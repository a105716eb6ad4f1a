"""Latent shards: what is written is read back, in any order, and damage is found and named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ayf_core.data.latent_shards import write_latents
from ayf_core.data.latents import LatentDataset, LatentSpace
from ayf_core.errors import AyfError

Latents = tuple[Tensor, Tensor, Tensor]


def make_latents(n: int = 23, shape: Sequence[int] = (3, 2, 2)) -> Latents:
    generator = torch.Generator().manual_seed(0)
    mean = 5.0 + 2.0 * torch.randn((n, *shape), generator=generator)
    std = torch.rand((n, *shape), generator=generator)
    return mean, std, torch.arange(n) % 4


def write(folder: Path, latents: Latents, *, batch: int = 6, shard_size: int = 10) -> Path:
    mean, std, labels = latents
    batches = zip(mean.split(batch), std.split(batch), labels.split(batch), strict=True)
    write_latents(folder, batches, mean.shape[1:], 4, "codec-hash", shard_size)
    return folder


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("keep_in_memory_bytes", [0, 2**20])
@pytest.mark.parametrize("shape", [(3, 2, 2), (2,)])
def test_examples_come_back_in_the_order_asked_for(
    tmp_path: Path, shape: tuple[int, ...], keep_in_memory_bytes: int
) -> None:
    latents = make_latents(shape=shape)
    data = LatentDataset(write(tmp_path, latents), keep_in_memory_bytes=keep_in_memory_bytes)
    assert (len(data), data.shape, data.num_classes, data.codec_fingerprint) == (23, shape, 4, "codec-hash")
    indices = torch.tensor([22, 0, 10, 9, 9, 19, 20])
    for read, written in zip(data.mean_std_labels(indices), latents, strict=True):
        assert torch.equal(read, written[indices])
        assert read.dtype == written.dtype
    data.verify()


def test_reading_never_changes_what_is_stored(tmp_path: Path) -> None:
    data = LatentDataset(write(tmp_path, make_latents()))
    first = data.mean_std_labels([1, 2])[0].clone()
    data.mean_std_labels([1, 2])[0].zero_()
    assert torch.equal(data.mean_std_labels([1, 2])[0], first)


def test_normalised_latents_have_zero_mean_and_unit_std(tmp_path: Path) -> None:
    mean, std, labels = make_latents(n=4000)
    space = LatentDataset(write(tmp_path, (mean, std, labels), shard_size=1500)).space
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    z = space.normalise(mean + std * noise)
    assert torch.all(z.mean(dim=(0, 2, 3)).abs() < 0.02)
    assert torch.all((z.std(dim=(0, 2, 3)) - 1).abs() < 0.02)
    assert torch.allclose(space.denormalise(z), mean + std * noise, atol=1e-5)


def test_shift_and_scale_are_the_exact_moments(tmp_path: Path) -> None:
    mean, std, labels = make_latents()
    manifest = json.loads((write(tmp_path, (mean, std, labels)) / "manifest.json").read_text())
    mean, std = mean.double(), std.double()
    shift = mean.mean(dim=(0, 2, 3))
    second = (mean.square() + std.square()).mean(dim=(0, 2, 3))
    assert manifest["shift"] == pytest.approx(shift.tolist(), rel=1e-12)
    assert manifest["scale"] == pytest.approx((second - shift.square()).sqrt().tolist(), rel=1e-10)


def test_constant_channel_keeps_its_scale(tmp_path: Path) -> None:
    mean, std, labels = make_latents()
    mean[:, 1], std[:, 1] = 1.0, 0.0
    space = LatentDataset(write(tmp_path, (mean, std, labels))).space
    assert (space.shift[1], space.scale[1]) == (1.0, 1.0)


def test_bytes_depend_neither_on_batches_nor_on_what_lay_there(tmp_path: Path) -> None:
    latents = make_latents()
    once = write(tmp_path / "once", latents, batch=6)
    write(tmp_path / "twice", make_latents(n=90), shard_size=5)
    twice = write(tmp_path / "twice", latents, batch=23)
    assert file_bytes(once) == file_bytes(twice)
    assert sorted(file_bytes(once)) == ["manifest.json"] + [f"shard_0000{i}.safetensors" for i in range(3)]


def test_interrupted_writing_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    mean, std, labels = make_latents()
    write(tmp_path, (mean, std, labels))

    def stops_half_way() -> Iterator[Latents]:
        yield mean[:12], std[:12], labels[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_latents(tmp_path, stops_half_way(), mean.shape[1:], 4, "codec-hash", 10)
    with pytest.raises(AyfError, match=r"manifest\.json is missing"):
        LatentDataset(tmp_path)


def test_pickled_data_set_carries_the_folder_not_the_data(tmp_path: Path) -> None:
    latents = make_latents(n=2000)
    data = LatentDataset(write(tmp_path, latents, shard_size=2000))
    data.mean_std_labels([0])
    pickled = pickle.dumps(data)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled).mean_std_labels([5])[0], latents[0][[5]])


def test_flipped_bit_is_found_by_verify_and_the_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, make_latents())
    shard = tmp_path / "shard_00001.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-5] ^= 1
    shard.write_bytes(damaged)
    data = LatentDataset(tmp_path)
    with pytest.raises(AyfError, match=r"shard_00001\.safetensors.*dvc repro --force encode_latents"):
        data.verify()


@pytest.mark.parametrize(("kept", "reason"), [(0, ""), (4, ""), (100, ""), (-1, "bytes, expected")])
def test_truncated_shard_is_named_when_opened(tmp_path: Path, kept: int, reason: str) -> None:
    write(tmp_path, make_latents())
    shard = tmp_path / "shard_00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    message = rf"shard_00002\.safetensors.*{reason}.*dvc repro --force encode_latents"
    with pytest.raises(AyfError, match=message):
        LatentDataset(tmp_path)


def test_missing_and_foreign_shards_are_named(tmp_path: Path) -> None:
    write(tmp_path, make_latents())
    (tmp_path / "shard_00000.safetensors").write_bytes(b"a foreign file, long enough to have a header")
    with pytest.raises(AyfError, match=r"shard_00000\.safetensors is truncated or foreign"):
        LatentDataset(tmp_path)
    (tmp_path / "shard_00000.safetensors").unlink()
    with pytest.raises(AyfError, match=r"shard_00000\.safetensors is missing"):
        LatentDataset(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}'])
def test_foreign_manifest_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, make_latents())
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(AyfError, match=r"manifest\.json"):
        LatentDataset(tmp_path)


def test_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path, make_latents())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(AyfError, match="format 99"):
        LatentDataset(tmp_path)


def test_non_finite_latents_and_strange_labels_are_refused(tmp_path: Path) -> None:
    mean, std, labels = make_latents()
    labels[13] = 4
    with pytest.raises(AyfError, match="example 13 has label 4"):
        write(tmp_path, (mean, std, labels))
    mean[11, 0] = float("nan")
    with pytest.raises(AyfError, match="latent 11 holds NaN"):
        write(tmp_path, (mean, std, labels))


def test_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="empty"):
        write_latents(tmp_path, [], (1,), 1, "codec-hash", 10)


def test_index_outside_raises(tmp_path: Path) -> None:
    data = LatentDataset(write(tmp_path, make_latents()))
    with pytest.raises(IndexError):
        data.mean_std_labels([23])


def test_latents_of_other_channels_are_refused() -> None:
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="3"):
        space.normalise(torch.zeros(5, 2))
