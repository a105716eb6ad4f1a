"""One's own images: what is read is watched, what evaluation will need is asked first, and DVC can be given them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ayf_core.errors import AyfError
from ayf_core.registry import Chosen, find
from pipelines.execution.stage import Stage
from pipelines.project.declarations import Declaration
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages.job import load as load_checked

Image = pytest.importorskip("PIL.Image")

REPOSITORY = Path(__file__).resolve().parents[2]


def write_images(folder: Path, classes: int, count: int) -> Path:
    generator = np.random.default_rng(0)
    for number in range(classes):
        (folder / f"class_{number}").mkdir(parents=True, exist_ok=True)
        for image in range(count):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class_{number}/{image}.png")
    return folder


def load(folder: Path, *, features: str = "pixels", neighbours: int = 5, test_fraction: float = 0.3) -> None:
    data = {"folder": str(folder), "image_size": 8, "test_fraction": test_fraction}
    chosen = Chosen(find("features", features), {"width": 8, "training": None} if features == "classifier" else {})
    load_checked(Chosen(find("data set", "folder"), data), 0, chosen, neighbours)


# ------------------------------------------------------------------------------------- what evaluation will need


def test_too_few_images_for_the_evaluation_are_refused_when_they_are_first_read(tmp_path: Path) -> None:
    folder = write_images(tmp_path, classes=2, count=8)
    with pytest.raises(AyfError, match=r"evaluation\.neighbours = 5: data\.test_fraction leaves 4 .* 3 at most"):
        load(folder)
    load(folder, neighbours=3)
    load(folder, test_fraction=0.4)


def test_images_of_one_class_cannot_train_a_classifier(tmp_path: Path) -> None:
    folder = write_images(tmp_path, classes=1, count=20)
    with pytest.raises(AyfError, match=r"features\.kind = classifier needs at least 2 classes"):
        load(folder, features="classifier")
    load(folder)


def test_inception_without_its_package_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    component = find("features", "inception").load()
    with pytest.raises(AyfError, match="needs the package torch_fidelity"):
        component(weights=None).check((3, 32, 32), 10)
    with pytest.raises(AyfError, match="is for images"):
        component(weights=None).check((2,), 1)


def test_chosen_inception_weights_are_held_to_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"one")
    inception = find("features", "inception").load()(weights=str(tmp_path / "weights.pth"))
    record = inception.record(tmp_path)
    (tmp_path / "features.json").write_text('{"kind": "inception", "sha256": "' + record["sha256"] + '"}')
    (tmp_path / "weights.pth").write_bytes(b"two")
    with pytest.raises(AyfError, match="no longer the file that was chosen"):
        inception.extractor(tmp_path, "cpu")


# ------------------------------------------------------------------------------------------------ what is watched


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "project/data/images/mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    declaration = Declaration("train_codec", "train_codec", deps=("data/images",))
    return Stage(tmp_path / "project", declaration, RuntimeConfig(), settings={})


def test_a_folder_inside_what_is_declared_is_watched(stage: Stage) -> None:
    stage.check_watched([Path("data/images"), Path("data/images/mine"), stage.root / "data/images"])
    stage.check_watched([])


def test_the_declared_folder_may_itself_be_a_link(stage: Stage, tmp_path: Path) -> None:
    (stage.root / "data/images").rename(tmp_path / "moved")
    (stage.root / "data/images").symlink_to(tmp_path / "moved")
    stage.check_watched([Path("data/images/mine"), tmp_path / "moved/mine"])


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_dvc_does_not_watch_is_refused_with_the_remedy(
    stage: Stage, tmp_path: Path, linked: bool
) -> None:
    place = tmp_path / "elsewhere"
    if linked:
        place = stage.root / "data/images/link"
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AyfError, match=r"is not inside data/images, so DVC would not see .*cp -rs .*elsewhere"):
        stage.check_watched([place])


# ------------------------------------------------------------------------------------------------------------- DVC


def call(folder: Path, *words: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "true", "GIT_CONFIG_GLOBAL": os.devnull}
    environment |= {
        f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def dvc(folder: Path, *words: str) -> str:
    return call(folder, sys.executable, "-m", "dvc", *words)


def commit(folder: Path) -> None:
    call(folder, "git", "add", "--all")
    call(folder, "git", "commit", "--quiet", "--message", "state")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this repository's ignore files and image folder, and one stage that reads it."""
    root = tmp_path / "project"
    (root / "data/images").mkdir(parents=True)
    for name in (".gitignore", ".dvcignore", "data/images/README.md"):
        (root / name).write_text((REPOSITORY / name).read_text())
    listing = "find data/images -name '*.png' | sort > seen.txt"
    (root / "dvc.yaml").write_text(f"stages: {{see: {{cmd: {listing!r}, deps: [data/images], outs: [seen.txt]}}}}\n")
    call(root, "git", "init", "--quiet")
    dvc(root, "init", "--quiet")
    write_images(root / "data/images", classes=2, count=2)
    commit(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_own_images_go_to_dvc_and_come_back(project: Path, tmp_path: Path, whole: bool) -> None:
    if whole:  # what DVC itself says: the folder must hold nothing of git's
        call(project, "git", "rm", "--quiet", "--cached", "data/images/README.md")
        dvc(project, "add", "data/images")
    else:
        dvc(project, "add", "data/images/class_0", "data/images/class_1")
    dvc(project, "remote", "add", "--default", "store", str(tmp_path / "remote"))
    dvc(project, "repro")
    commit(project)
    dvc(project, "push")
    call(tmp_path, "git", "clone", "--quiet", str(project), "clone")
    dvc(tmp_path / "clone", "pull")
    for image in sorted((project / "data/images").rglob("*.png")):
        assert (tmp_path / "clone" / image.relative_to(project)).read_bytes() == image.read_bytes()
    assert "up to date" in dvc(tmp_path / "clone", "status")
    # An experiment in a copy of the project sees an image that is new.
    Image.new("L", (8, 8), 9).save(project / "data/images/class_0/new.png")
    dvc(project, "add", "data/images" if whole else "data/images/class_0")
    dvc(project, "exp", "run", "--temp", "--name", "more")
    dvc(project, "exp", "apply", "more")
    assert "data/images/class_0/new.png" in (project / "seen.txt").read_text()
