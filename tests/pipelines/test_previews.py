"""Pictures of what was trained, as it comes: shown to a person, kept with the run, no output, and never in the way."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipelines.execution.stage import PREVIEWS, Stage
from pipelines.project.code import stage_code
from pipelines.project.declarations import Declaration
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages.assembly import save_preview
from pipelines.stages.job import PREVIEW
from pipelines.stages.pictures import GAP, reconstructions

REPOSITORY = Path(__file__).resolve().parents[2]


class Kept:
    """The run: remembers what it is given."""

    def __init__(self) -> None:
        self.artifacts: list[bytes] = []

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.artifacts.append(path.read_bytes())


class Halves:
    """A codec that keeps half of every value."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x / 2, torch.zeros_like(x)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def stage_of(root: Path, **options: Any) -> Any:
    stage: Any = Stage(root, Declaration("train_codec", "train_codec"), RuntimeConfig(), settings={}, **options)
    stage.run = Kept()
    return stage


def test_what_a_training_left_is_shown_in_the_project_and_kept_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = stage_of(tmp_path)
    picture = stage.training_folder() / PREVIEW
    stage.show(picture, "codec", "samples")
    assert not (tmp_path / PREVIEWS).exists()
    context: Any = SimpleNamespace(folder=stage.training_folder())
    context.folder.mkdir(parents=True)
    save_preview(context, "reconstructions", Halves(), torch.zeros(1, 1, 8, 8))
    for _ in range(2):  # a stage that was interrupted after its training shows it again
        stage.show(picture, "codec", "samples")
    shown = tmp_path / PREVIEWS / "codec.png"
    with Image.open(shown) as found:
        assert found.size == (44, 86)
    assert stage.run.artifacts[0] == shown.read_bytes()
    assert capsys.readouterr().out.splitlines() == [f"train_codec: samples: {PREVIEWS}/codec.png"] * 2


def test_a_picture_that_cannot_be_drawn_does_not_undo_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context: Any = SimpleNamespace(folder=tmp_path)
    save_preview(context, "samples", tmp_path / "nowhere")
    assert not (tmp_path / PREVIEW).exists()
    error = capsys.readouterr().err
    assert error.startswith("no picture of what was trained: ")
    assert error.count("\n") == 1


def test_what_draws_pictures_is_no_part_of_a_trainings_code() -> None:
    trainings = ["train_codec", "train_teacher", "distill@emd", "finetune_adversarial"]
    for modules in stage_code(REPOSITORY, trainings).values():
        assert "pipelines.stages.assembly" in modules
        assert not [m for m in modules if m.startswith(("ayf_core.sampling", "pipelines.stages.pictures"))]


def test_the_trials_of_a_sweep_draw_no_pictures(tmp_path: Path) -> None:
    assert stage_of(tmp_path).shows_pictures
    assert not stage_of(tmp_path, runs=tmp_path / "trials").shows_pictures


def test_reconstructions_lie_below_the_images_they_are_of() -> None:
    images = torch.full((30, 1, 8, 8), -1.0)
    picture: Any = reconstructions(Halves(), images, columns=6)
    width, height = (6 * (40 + GAP) + GAP, 2 * (40 + GAP) + GAP)
    assert picture.size == (width, height)
    above, below = (picture.getpixel((GAP + 5, GAP + 5 + row * (40 + GAP))) for row in (0, 1))
    assert above == (0, 0, 0)
    assert below == (64, 64, 64)
