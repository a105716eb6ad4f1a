"""Where a trial begins: at its own checkpoint, or at the one that Ray Tune points to."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from ayf_core.errors import AyfError
from pipelines.settings.params_file import from_preset
from pipelines.settings.runtime import RuntimeConfig
from sweeps import trial
from sweeps.definition import read_sweep
from sweeps.trial import POINTER, Reporter, TrialJob

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    sweep = read_sweep(REPOSITORY, REPOSITORY / "sweeps/population.yaml", from_preset(REPOSITORY, "digits"))
    (tmp_path / "own").mkdir()
    job = TrialJob(root=REPOSITORY, sweep=sweep, runtime=RuntimeConfig(), trials=tmp_path, shared=tmp_path / "shared")
    return Reporter(tmp_path / "own", job)


def checkpoint(training: Path, step: int, text: str) -> None:
    place = training / "checkpoints" / f"step_{step:08d}"
    place.mkdir(parents=True)
    (place / "weights").write_text(text)


def hand(monkeypatch: pytest.MonkeyPatch, folder: Path, training: Path, step: int) -> None:
    """Let Ray Tune point to a checkpoint."""
    (folder / POINTER).write_text(json.dumps({"training": str(training), "step": step}))

    @contextmanager
    def as_directory():
        yield str(folder)

    monkeypatch.setattr(trial.tune, "get_checkpoint", lambda: SimpleNamespace(as_directory=as_directory))


def test_an_exploit_leaves_nothing_of_what_the_settings_gave_before(
    reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor, own = tmp_path / "other/scratch/training", tmp_path / "own/scratch/training"
    checkpoint(donor, 200, "better")
    checkpoint(own, 200, "mine")
    checkpoint(own, 400, "mine")
    for finished in (own / "result.json", own.parent / "complete.json"):
        finished.write_text("{}")
    hand(monkeypatch, tmp_path, donor, 200)
    reporter.take_over(own)
    assert [place.name for place in (own / "checkpoints").iterdir()] == ["step_00000200"]
    assert (own / "checkpoints/step_00000200/weights").read_text() == "better"
    assert not (own / "result.json").exists()
    assert not (own.parent / "complete.json").exists()
    assert json.loads((tmp_path / "own/copies.jsonl").read_text()) == {"step": 200, "from": str(donor)}


@pytest.mark.parametrize("elsewhere", ["../stranger/training", "/etc", "own/../../stranger"])
def test_a_pointer_to_somewhere_else_is_refused_before_anything_is_removed(
    reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    own = tmp_path / "own/scratch/training"
    checkpoint(own, 400, "mine")
    hand(monkeypatch, tmp_path, tmp_path / elsewhere, 400)
    with pytest.raises(AyfError, match="no file inside"):
        reporter.take_over(own)
    assert (own / "checkpoints/step_00000400/weights").read_text() == "mine"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "{}", '{"training": 7, "step": 1}', '{"training": "a", "step": "x"}']
)
def test_a_pointer_that_is_none_is_refused(
    reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    hand(monkeypatch, tmp_path, tmp_path / "other", 1)
    (tmp_path / POINTER).write_text(content)
    with pytest.raises(AyfError, match="points to no checkpoint"):
        reporter.take_over(tmp_path / "own/scratch/training")


def test_a_pause_goes_on_with_the_trials_own_checkpoint(
    reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own/scratch/training"
    checkpoint(own, 400, "mine")
    hand(monkeypatch, tmp_path, own, 400)
    reporter.take_over(own)
    assert (own / "checkpoints/step_00000400/weights").read_text() == "mine"
    assert not (tmp_path / "own/copies.jsonl").exists()
