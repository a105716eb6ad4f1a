"""Data sets: ranges, splits, the checkerboard's law, and what bad folders say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ayf_core.data.sets.base import DataSet, DataSource, Examples, stratified_split
from ayf_core.data.sets.checkerboard import HALF_WIDTH, SCALE, Checkerboard, sample_checkerboard
from ayf_core.data.sets.digits import Digits
from ayf_core.data.sets.folder import ImageFolder
from ayf_core.errors import AyfError
from ayf_core.registry import components, find
from ayf_core.settings import settings_of

Image = pytest.importorskip("PIL.Image")


def save_image(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def grey_folder(tmp_path: Path) -> Path:
    for name, value in (("cats", 0), ("dogs", 255)):
        for number in range(5):
            save_image(tmp_path / "grey" / name / f"{number}.png", np.full((6, 9), value, np.uint8))
    return tmp_path / "grey"


def load_folder(folder: Path, image_size: int = 4) -> DataSet:
    return ImageFolder(folder=str(folder), image_size=image_size, test_fraction=0.4).load(seed=0)


def test_digits_are_eight_by_eight_in_range_with_every_class_on_both_sides() -> None:
    data = Digits(test_fraction=0.2).load(seed=0)
    assert (data.num_classes, data.half_width) == (10, None)
    assert data.shape == (1, Digits(test_fraction=0.2).side, 8)
    assert data.train.x.shape[1:] == (1, 8, 8)
    assert data.train.x.dtype == torch.float32
    assert len(data.train) + len(data.test) == 1797
    assert data.train.x.min() == -1.0
    assert data.train.x.max() == 1.0
    share = torch.bincount(data.test.labels) / (torch.bincount(data.test.labels) + torch.bincount(data.train.labels))
    assert torch.all((share - 0.2).abs() < 0.005)


def test_split_depends_on_the_seed_alone_and_shares_no_example() -> None:
    labels = torch.arange(40) % 3
    first = stratified_split(labels, 0.25, torch.Generator().manual_seed(7))
    again = stratified_split(labels, 0.25, torch.Generator().manual_seed(7))
    other = stratified_split(labels, 0.25, torch.Generator().manual_seed(8))
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert sorted(torch.cat(first).tolist()) == list(range(40))


def test_split_leaves_one_example_of_a_small_class_on_each_side() -> None:
    train, test = stratified_split(torch.tensor([0, 0, 1, 1]), 0.01, torch.Generator().manual_seed(0))
    assert len(train) == len(test) == 2


def test_checkerboard_is_uniform_on_the_eight_odd_squares_with_unit_std() -> None:
    points = sample_checkerboard(80_000, torch.Generator().manual_seed(0)).double()
    square = torch.floor((points / SCALE + 4.0) / 2.0).clamp(0, 3).long()
    counts = torch.bincount(4 * square[:, 0] + square[:, 1], minlength=16).reshape(4, 4)
    odd = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 1
    assert counts[~odd].sum() <= 2  # float32 rounding at an edge
    assert torch.all((counts[odd] / 10_000 - 1).abs() < 0.05)
    assert torch.all(points.mean(0).abs() < 0.02)
    assert torch.all((points.std(0) - 1).abs() < 0.01)


def test_checkerboard_data_set_has_points_and_one_class() -> None:
    data = Checkerboard(test_fraction=0.1, size=500).load(seed=3)
    assert (data.num_classes, len(data.train), len(data.test)) == (1, 450, 50)
    assert data.half_width == HALF_WIDTH == pytest.approx(3**0.5)
    assert data.train.x.abs().max() <= HALF_WIDTH
    assert data.train.x.shape[1:] == (2,)


def test_grey_files_stay_grey_and_sub_folders_are_classes(grey_folder: Path) -> None:
    data = load_folder(grey_folder)
    assert data.train.x.shape == (6, 1, 4, 4)
    assert data.num_classes == 2
    for split in (data.train, data.test):
        assert torch.equal(split.x[:, 0, 0, 0] > 0, split.labels == 1)


def test_one_colour_file_makes_the_data_set_rgb(grey_folder: Path) -> None:
    save_image(grey_folder / "cats" / "red.png", np.full((5, 5, 3), (255, 0, 0), np.uint8))
    data = load_folder(grey_folder)
    x = torch.cat([data.train.x, data.test.x])
    assert x.shape[1:] == (3, 4, 4)
    assert torch.any(torch.all(x[:, :, 0, 0] == torch.tensor([1.0, -1.0, -1.0]), dim=1))


@pytest.mark.parametrize("colour", [False, True])
def test_an_outline_is_what_loading_gives(grey_folder: Path, colour: bool) -> None:
    if colour:
        save_image(grey_folder / "cats" / "colour.png", np.zeros((4, 4, 3), np.uint8))
    folder = ImageFolder(folder=str(grey_folder), image_size=4, test_fraction=0.4)
    for source in (folder, Digits(test_fraction=0.3), Checkerboard(size=64, test_fraction=0.25)):
        loaded, outline = source.load(3), source.outline(3)
        assert (outline.shape, outline.num_classes) == (loaded.shape, loaded.num_classes)
        assert (outline.train, outline.test) == (len(loaded.train), len(loaded.test))


def test_images_are_cropped_to_the_centre_square(tmp_path: Path) -> None:
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 255
    for number in range(2):
        save_image(tmp_path / f"{number}.png", wide)
    data = load_folder(tmp_path)
    assert data.num_classes == 1
    assert torch.all(data.train.x == 1.0)


def test_photographs_stored_on_their_side_are_turned_upright(tmp_path: Path) -> None:
    top_left = np.zeros((4, 4), np.uint8)
    top_left[:2, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    for number in range(2):
        Image.fromarray(top_left).save(tmp_path / f"{number}.png", exif=exif)
    picture = load_folder(tmp_path).train.x[0, 0]
    assert (picture[0, 3], picture[0, 0]) == (1.0, -1.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Checkerboard(test_fraction=0.2, size=1), "say how many points"),
        (ImageFolder(test_fraction=0.2, folder="does/not/exist", image_size=8), "no image folder at does/not/exist"),
        (ImageFolder(test_fraction=0.2, folder=".", image_size=0), "image_size"),
    ],
)
def test_wrong_settings_say_what_to_change(source: DataSource, message: str) -> None:
    with pytest.raises(AyfError, match=message):
        source.load(seed=0)


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(AyfError, match="did you mean digits"):
        find("data set", "digit")


def test_every_data_set_says_what_it_can_be_measured_by() -> None:
    for name, component in components("data set").items():
        assert component.facts["gives"], name
        assert {"test_fraction"} <= settings_of(component.load()).keys()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_test_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(AyfError, match="between 0 and 1"):
        Digits(test_fraction=fraction).load(seed=0)


def test_unreadable_image_is_named(grey_folder: Path) -> None:
    (grey_folder / "dogs" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(AyfError, match=r"broken\.png.*replace or remove"):
        load_folder(grey_folder)


def test_truncated_image_is_named(grey_folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    save_image(grey_folder / "dogs" / "cut.png", noise)
    whole = (grey_folder / "dogs" / "cut.png").read_bytes()
    (grey_folder / "dogs" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AyfError, match=r"cut\.png"):
        load_folder(grey_folder)


def test_data_set_of_one_image_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "only.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(AyfError, match="at least 2"):
        load_folder(tmp_path)


def test_class_of_one_image_is_named(grey_folder: Path) -> None:
    save_image(grey_folder / "owls" / "only.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(AyfError, match=r"owls holds one image"):
        load_folder(grey_folder)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="holds no image"):
        load_folder(tmp_path)


def test_images_beside_class_folders_are_refused(grey_folder: Path) -> None:
    save_image(grey_folder / "stray.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(AyfError, match=r"stray\.png"):
        load_folder(grey_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_data_are_refused(value: float) -> None:
    class Broken(DataSource):
        def examples(self, generator: torch.Generator) -> Examples:
            x = torch.zeros(4, 2)
            x[2, 1] = value
            return Examples(x, torch.zeros(4, dtype=torch.int64), 1)

    with pytest.raises(AyfError, match=r"NaN or infinity in 1 of 4 examples, first in number 2"):
        Broken(test_fraction=0.5).load(seed=0)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(AyfError, match=r"align-your-flow\[platform\]"):
        Digits(test_fraction=0.2).load(seed=0)


def test_a_class_folder_that_is_a_link_is_refused_with_the_remedy(grey_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for place in ("cats", "dogs"):
        (tmp_path / "set" / place).symlink_to(grey_folder / place, target_is_directory=True)
    with pytest.raises(AyfError, match=r"cats is a link, behind which DVC sees no change: .*cp -rs"):
        load_folder(tmp_path / "set")


def test_links_to_images_and_a_link_to_the_whole_folder_are_followed(grey_folder: Path, tmp_path: Path) -> None:
    plain = load_folder(grey_folder)
    for file in grey_folder.glob("*/*.png"):
        place = tmp_path / "farm" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / file.name).symlink_to(file)
    (tmp_path / "link").symlink_to(grey_folder, target_is_directory=True)
    for other in (load_folder(tmp_path / "farm"), load_folder(tmp_path / "link")):
        assert torch.equal(other.train.x, plain.train.x)
        assert torch.equal(other.test.labels, plain.test.labels)


@pytest.mark.parametrize("name", ["cats/6.png", "owls"])
def test_a_link_that_leads_nowhere_is_named(grey_folder: Path, name: str) -> None:
    (grey_folder / name).symlink_to(grey_folder / "gone")
    with pytest.raises(AyfError, match=r"is a link to .*gone, which is not there"):
        load_folder(grey_folder)
