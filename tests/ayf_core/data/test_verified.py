"""Checksums that are remembered: a file that is as it was is not read again, any other one is."""

import hashlib
import os
import threading
from pathlib import Path

import pytest
import torch

from ayf_core.data import verified
from ayf_core.data.latent_shards import write_latents
from ayf_core.data.latents import LatentDataset
from ayf_core.data.verified import VerifiedFiles
from ayf_core.errors import AyfError


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to the end, in order."""
    found: list[str] = []

    def file_digest(opened, algorithm):
        found.append(Path(opened.name).name)
        return hashlib.new(algorithm, opened.read())

    monkeypatch.setattr(verified.hashlib, "file_digest", file_digest)
    monkeypatch.setattr(verified, "SETTLED_SECONDS", -1e9)
    return found


def sha256(content: bytes) -> str:
    return hashlib.new("sha256", content).hexdigest()


def written(place: Path, content: bytes) -> Path:
    place.write_bytes(content)
    return place


def test_a_file_is_read_once_whoever_asks(tmp_path: Path, reads: list[str]) -> None:
    file = written(tmp_path / "shard", b"content")
    for _ in range(3):
        assert VerifiedFiles(tmp_path / "memory").sha256(file) == sha256(b"content")
    assert reads == ["shard"]


def test_another_memory_reads_it_again(tmp_path: Path, reads: list[str]) -> None:
    file = written(tmp_path / "shard", b"content")
    for name in ("one", "two"):
        VerifiedFiles(tmp_path / name).sha256(file)
    assert len(reads) == 2


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def flip_and_set_the_time_back(file: Path) -> None:
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another_of_the_same_time_and_size(file: Path) -> None:
    before = file.stat()
    beside = written(file.with_name("beside"), file.read_bytes())
    flip(beside)
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(beside, file)


@pytest.mark.parametrize("damage", [flip, flip_and_set_the_time_back, replace_by_another_of_the_same_time_and_size])
def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[str], damage) -> None:
    file = written(tmp_path / "shard", b"content")
    memory = VerifiedFiles(tmp_path / "memory")
    memory.sha256(file)
    damage(file)
    assert memory.sha256(file) == sha256(b"contenu")
    assert len(reads) == 2


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "SETTLED_SECONDS", 60)
    file = written(tmp_path / "shard", b"content")
    memory = VerifiedFiles(tmp_path / "memory")
    for _ in range(2):
        memory.sha256(file)
    assert len(reads) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"%s": 3}', '{"%s": {"mark": 1}}'])
def test_a_memory_that_is_none_is_as_good_as_none(tmp_path: Path, reads: list[str], content: str) -> None:
    file = written(tmp_path / "shard", b"content")
    memory = VerifiedFiles(tmp_path)
    memory._memory.write_text(content.replace("%s", str(file)))
    for _ in range(2):
        assert memory.sha256(file) == sha256(b"content")
    assert len(reads) == 1


def test_files_that_are_gone_are_forgotten(tmp_path: Path, reads: list[str]) -> None:
    memory = VerifiedFiles(tmp_path / "memory")
    old, new = written(tmp_path / "old", b"old"), written(tmp_path / "new", b"new")
    memory.sha256(old)
    old.unlink()
    memory.sha256(new)
    assert list(memory._known()) == [str(new)]


def test_many_at_once_leave_a_memory_that_can_be_read(tmp_path: Path, reads: list[str]) -> None:
    files = [written(tmp_path / f"shard_{i}", bytes([i])) for i in range(8)]
    threads = [threading.Thread(target=VerifiedFiles(tmp_path / "memory").sha256, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = VerifiedFiles(tmp_path / "memory")._known()
    assert 1 <= len(known) <= 8
    assert {name: entry["sha256"] for name, entry in known.items()}.items() <= {
        str(file): sha256(file.read_bytes()) for file in files
    }.items()
    assert [path.name for path in (tmp_path / "memory").iterdir()] == [VerifiedFiles(tmp_path)._memory.name]


def test_latents_verified_twice_are_read_once_and_damage_in_between_is_found(tmp_path: Path, reads: list[str]) -> None:
    latents = torch.randn(6, 2, 2, 2), torch.rand(6, 2, 2, 2), torch.arange(6) % 2
    folder = tmp_path / "latents"
    write_latents(folder, [latents], (2, 2, 2), 2, "codec", 3)
    reads.clear()
    memory = VerifiedFiles(tmp_path / "memory")
    LatentDataset(folder).verify(memory)
    LatentDataset(folder).verify(memory)
    assert reads == ["shard_00000.safetensors", "shard_00001.safetensors"]
    flip_and_set_the_time_back(folder / "shard_00001.safetensors")
    with pytest.raises(AyfError, match=r"shard_00001\.safetensors is damaged"):
        LatentDataset(folder).verify(memory)
