"""The runs that nothing happened to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made_once import made_once
from tests.reliability.lab import STAGE, Lab, teacher_of


@pytest.fixture(scope="session")
def left_alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose teacher was trained by one worker without a fault. To read."""
    return made_once(tmp_path_factory, "undisturbed", lambda place: _run(prepared, place)) / "project"


@pytest.fixture(scope="session")
def undisturbed(left_alone: Path) -> str:
    """Fingerprint of the teacher of a run that nothing happened to, with one worker."""
    return teacher_of(left_alone)


@pytest.fixture(scope="session")
def undisturbed_pair(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with two workers of Ray, whose sums are rounded otherwise."""
    on_ray = {"mode": "ray", "workers": 2}
    place = made_once(tmp_path_factory, "undisturbed-pair", lambda place: _run(prepared, place, **on_ray))
    return teacher_of(place / "project")


def _run(prepared: Path, place: Path, **runtime: str | int) -> None:
    lab = Lab.copy(prepared, place / "project", **runtime)
    lab.finish(lab.start("stage", STAGE))
