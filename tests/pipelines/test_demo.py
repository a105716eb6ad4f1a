"""The student that ships with the project: complete, small, of a named origin, and drawn by one command."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from ayf_core.sampling.generator import Generator
from pipelines.commands.main import main

DEMO = Path(__file__).parents[2] / "pipelines" / "demo"


def test_demo_draws_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["demo", "--guidance-scale", "1.25"])
    assert done.exit_code == 0, done.output
    assert "60 digits at 1, 2 and 4 steps, λ = 1.25" in done.output
    colours = Image.open(tmp_path / "demo.png").convert("L").getextrema()
    assert colours[0] < 20
    assert colours[1] > 235


def test_what_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, said in ((["--guidance-scale", "9"], "outside what this student learnt"), (["--out", "a.x"], "'.x'")):
        done = CliRunner().invoke(main, ["demo", *words])
        assert done.exit_code == 1
        assert said in done.output
        assert done.output.count("\n") == 1


def test_it_is_small_and_says_where_it_is_from() -> None:
    size = sum(path.stat().st_size for path in DEMO.rglob("*") if path.suffix != ".pyc")
    assert size < 3 * 2**20
    origin = json.loads((DEMO / "provenance.json").read_text())
    assert re.fullmatch("[0-9a-f]{40}", origin["commit"])
    assert re.fullmatch("[0-9a-f]{64}", origin["source_sha256"])


def test_it_gives_the_digits_that_are_asked_for() -> None:
    """Their mean images are those of the data: nearer to the class's own than to any other."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    student = Generator.load(DEMO / "model")
    labels = [label for label in range(10) for _ in range(20)]
    drawn = student.sample(student.draw_noise(200, 0), 1, labels=labels).x.view(10, 20, 64).mean(1)
    real = [(digits.data[digits.target == label].mean(0) / 8 - 1).astype("float32") for label in range(10)]
    for label in range(10):
        distances = [float((drawn[label].numpy() - mean).__pow__(2).sum()) for mean in real]
        assert min(range(10), key=distances.__getitem__) == label
