"""Images by the thousand: the same whoever draws them and however often that stops, in forms that other tools read."""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from ayf_core.data.codecs.identity import IdentityCodec
from ayf_core.data.latent_shards import write_latents
from ayf_core.data.latents import LatentSpace
from ayf_core.errors import AyfError, Preempted
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.build import build_network
from ayf_core.sampling.numbered import NumberedNoise, balanced_labels, drawn_labels
from ayf_core.training.artefact import save_model
from pipelines.commands.main import main
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages import generate as generating
from pipelines.stages.generate import generate
from tests.made import dit, without_zeros
from tests.pipelines.test_encode_latents import Worker
from tests.sweeps.tiny_student import write_model as write_points_model

SHAPE, CLASSES = (1, 4, 4), 3
INLINE = RuntimeConfig(mode="inline", checkpoint_every=1)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "SHARD_SIZE", 4)


def write_model(folder: Path, role: str = "flow_map", seed: int = 0) -> None:
    torch.manual_seed(seed)
    guided = role == "flow_map"
    network = without_zeros(build_network(dit(SHAPE, width=8, interval=guided, guidance=guided)), 0.3)
    codec = folder.parent / "codec"
    IdentityCodec().save(codec)
    space = LatentSpace(torch.zeros(1), torch.ones(1))
    learnt = GuidanceRange(1.0, 2.0) if guided else None
    save_model(folder, network, network.state_dict(), role=role, codec=codec, space=space, guidance=learnt)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    write_model(tmp_path / "models" / "student")
    return tmp_path / "models" / "student"


def drawn(model: Path, out: Path, count: int = 10, **how: object) -> str:
    settings = {"evaluations": 2, "batch_size": 2, **how}
    return generate(str(model), model.parents[1], INLINE, out, count=count, **settings)  # type: ignore[arg-type]


def images_of(out: Path) -> np.ndarray:
    return np.load(out)["arr_0"]


def test_a_sample_starts_from_its_own_noise_and_takes_its_own_label() -> None:
    like = torch.empty(4, 3, 2)
    few, many = NumberedNoise(5, 2, 4), NumberedNoise(5, 0, 4)
    for _ in range(2):
        torch.testing.assert_close(few(like[:2]), many(like)[2:], rtol=0, atol=0)
    assert not torch.equal(NumberedNoise(5, 0, 4)(like), NumberedNoise(6, 0, 4)(like))
    assert balanced_labels(3, 8, [4, 7]).tolist() == [7, 4, 7, 4, 7]


def test_labels_occur_as_often_as_in_the_data() -> None:
    counts = torch.tensor([600, 0, 300, 100])
    labels = drawn_labels(0, 0, 20_000, counts)
    shares = torch.bincount(labels, minlength=4) / 20_000
    # Four standard errors of a share of 0.6 of 20,000 are 0.014.
    torch.testing.assert_close(shares, counts / 1000, rtol=0, atol=0.014)
    assert shares[1] == 0
    assert drawn_labels(0, 100, 110, counts).tolist() == labels[100:110].tolist()


def test_any_number_of_workers_gives_the_same_images(student: Path, tmp_path: Path) -> None:
    drawn(student, tmp_path / "alone.npz", gamma=0.5)
    request = captured(student, tmp_path / "two.npz", gamma=0.5)
    for rank in (1, 0):
        generating.draw({"request": request}, Worker(tmp_path / "two.npz.partial" / "run", rank, 2))
    drawn(student, tmp_path / "two.npz", gamma=0.5)
    assert (tmp_path / "alone.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@pytest.mark.ray
def test_two_workers_of_ray_draw_what_one_process_draws(student: Path, tmp_path: Path) -> None:
    drawn(student, tmp_path / "alone.npz")
    two = RuntimeConfig(workers=2, threads_per_worker=1)
    generate(str(student), tmp_path, two, tmp_path / "two.npz", count=10, evaluations=2, batch_size=2)
    assert (tmp_path / "alone.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def captured(student: Path, out: Path, **how: object) -> generating.Request:
    """The request that a run makes, without a worker that would draw it."""
    seen: list[generating.Request] = []

    def stop(settings: dict, context: object) -> dict:
        seen.append(settings["request"])
        raise Preempted(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating, "draw", stop)
        with pytest.raises(Preempted):
            drawn(student, out, **how)
    return seen[0]


@pytest.mark.parametrize("name", ["images", "images.npz", "images.tar"])
def test_what_was_interrupted_goes_on_to_the_same_files(student: Path, tmp_path: Path, name: str) -> None:
    whole, stopped = tmp_path / "whole" / name, tmp_path / "stopped" / name
    drawn(student, whole)
    request = captured(student, stopped)
    work = stopped.with_name(f"{name}.partial")
    with pytest.raises(Preempted):
        generating.draw({"request": request}, Worker(work / "run", stop_at=2))
    assert len(list(work.glob("shard_*"))) == 2
    assert not stopped.exists()
    with pytest.MonkeyPatch.context() as patch:
        calls = counted(patch)
        drawn(student, stopped)
    assert calls == [(8, 10)]
    assert not work.exists()
    assert content(whole) == content(stopped)


def counted(patch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The images that are drawn from now on, batch by batch."""
    calls: list[tuple[int, int]] = []
    real = generating.drawn

    def noted(model: object, request: object, first: int, last: int) -> np.ndarray:
        calls.append((first, last))
        return real(model, request, first, last)  # type: ignore[arg-type]

    patch.setattr(generating, "drawn", noted)
    return calls


def content(out: Path) -> dict[str, bytes]:
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    return {file.name: file.read_bytes() for file in files}


def test_the_three_forms_hold_the_same_images_and_labels(student: Path, tmp_path: Path) -> None:
    for name in ("images", "images.npz", "images.tar"):
        drawn(student, tmp_path / name)
    archive = np.load(tmp_path / "images.npz")
    images, labels = archive["arr_0"], archive["arr_1"]
    assert images.shape == (10, *SHAPE[1:], 3)
    assert images.dtype == np.uint8
    assert images.std() > 10
    assert labels.tolist() == [number % CLASSES for number in range(10)]

    rows = list(csv.DictReader((tmp_path / "images" / "metadata.csv").read_text().splitlines()))
    assert [(row["file_name"], int(row["label"])) for row in rows] == [
        (f"{number:08d}.png", label) for number, label in enumerate(labels)
    ]
    with tarfile.open(tmp_path / "images.tar") as members:
        assert members.getnames()[:3] == ["00000000.png", "00000000.cls", "00000001.png"]
        for number, row in enumerate(rows):
            in_tar = Image.open(members.extractfile(f"{number:08d}.png"))  # type: ignore[arg-type]
            on_disk = Image.open(tmp_path / "images" / row["file_name"])
            for found in (in_tar, on_disk):
                np.testing.assert_array_equal(np.asarray(found.convert("RGB")), images[number])
            assert members.extractfile(f"{number:08d}.cls").read() == str(labels[number]).encode()  # type: ignore[union-attr]


def test_labels_may_be_named_listed_or_those_of_the_data(student: Path, tmp_path: Path) -> None:
    def labels(name: str, asked: str) -> list[int]:
        drawn(student, tmp_path / f"{name}.npz", labels=asked)
        return np.load(tmp_path / f"{name}.npz")["arr_1"].tolist()

    assert labels("named", "2,0") == [2, 0] * 5
    (tmp_path / "listed.txt").write_text("\n".join("2101210121"))
    assert labels("listed", str(tmp_path / "listed.txt")) == [2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    z = torch.zeros(30, *SHAPE)
    write_latents(tmp_path / "data/latents/train", [(z, z, torch.full((30,), 1))], SHAPE, CLASSES, "x", 16)
    assert labels("data", "data") == [1] * 10


def test_a_teacher_is_guided_by_a_weak_one(tmp_path: Path) -> None:
    for number, name in enumerate(("teacher", "weak")):
        write_model(tmp_path / "models" / name, role="velocity", seed=number)
    teacher, weak = tmp_path / "models" / "teacher", str(tmp_path / "models" / "weak")
    drawn(teacher, tmp_path / "plain.npz", evaluations=3)
    drawn(teacher, tmp_path / "same.npz", evaluations=3, guidance_scale=1.0, weak_model=weak)
    drawn(teacher, tmp_path / "guided.npz", evaluations=3, guidance_scale=2.0, weak_model=weak)
    plain, same, guided = (images_of(tmp_path / f"{name}.npz").astype(int) for name in ("plain", "same", "guided"))
    assert np.abs(plain - same).max() <= 1
    assert np.abs(plain - guided).max() > 10
    with pytest.raises(AyfError, match="name both --guidance-scale and --weak-model"):
        drawn(teacher, tmp_path / "x.npz", guidance_scale=2.0)


def test_points_go_into_one_file(tmp_path: Path) -> None:
    write_points_model(tmp_path / "models" / "points")
    points = tmp_path / "models" / "points"
    drawn(points, tmp_path / "points.npz")
    found = images_of(tmp_path / "points.npz")
    assert (found.shape, found.dtype) == ((10, 2), np.float32)
    refused(points, tmp_path / "points", "the model makes points, not images: name a file that ends in .npz")


def refused(student: Path, out: Path, match: str, **how: object) -> None:
    with pytest.raises(AyfError, match=match) as caught:
        drawn(student, out, **how)
    assert "\n" not in str(caught.value)


def test_what_cannot_work_is_said_before_anything_is_drawn(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    refused(student, tmp_path / "images.jpg", r"images are written to a folder, one .npz or one .tar, not to '.jpg'")
    refused(student, tmp_path, "is there already: remove it")
    refused(student, tmp_path / "a", "label 3 is not one of the model's classes: choose 0 to 2", labels="3")
    refused(student, tmp_path / "a", "give balanced, data, whole numbers with commas", labels="cats")
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    refused(student, tmp_path / "a", "give balanced, data, whole numbers", labels=str(tmp_path / "picture"))
    (tmp_path / "few.txt").write_text("1\n2\n")
    refused(student, tmp_path / "a", "holds 2 labels for 10 images", labels=str(tmp_path / "few.txt"))
    refused(student, tmp_path / "a", "no latents at", labels="data")
    refused(student, tmp_path / "a", r"take up to .* GiB and .* free: name a place", count=10**13)
    refused(student, tmp_path / "a", "leave --weak-model out", weak_model=str(student))
    captured(student, tmp_path / "begun")
    refused(student, tmp_path / "begun", "was begun with other settings or another model: remove it", seed=1)
    assert calls == []


def test_a_number_that_is_none_is_named(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = generating.Generator.sample

    def broken(self: generating.Generator, *args: object, **named: object) -> object:
        made = real(self, *args, **named)  # type: ignore[arg-type]
        made.x[1] = torch.nan
        return made

    monkeypatch.setattr(generating.Generator, "sample", broken)
    refused(student, tmp_path / "a.npz", "image 1 holds NaN or infinity")
    assert not (tmp_path / "a.npz").exists()


def invoked(*words: str) -> Result:
    return CliRunner().invoke(main, ["generate", *words])


def test_the_command_outside_a_project(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoked(str(student), "--count", "6", "--steps", "1", "--out", "found/images")
    assert done.exit_code == 0, done.output
    assert "wrote found/images: 6 images, 1 step, PNG files, uniform grid" in done.output
    assert len(list((tmp_path / "found/images").glob("*.png"))) == 6
    again = invoked(str(student), "--count", "6", "--out", "found/images")
    assert (again.exit_code, again.output) == (
        1,
        "error: found/images is there already: remove it, or name another place\n",
    )


def test_a_runtime_that_is_not_there_is_no_reason_to_take_another(
    student: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").symlink_to(repository / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AYF_RUNTIME", "inlne")
    done = invoked(str(student), "--count", "6", "--out", "images")
    assert (done.exit_code, "did you mean inline" in done.output) == (1, True)
