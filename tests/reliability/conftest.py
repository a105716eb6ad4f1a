"""The runs that nothing happened to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made_once import made_once
from tests.reliability.lab import STAGE, Lab


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fingerprint of the teacher of a run that nothing happened to, with one worker."""
    return _teacher(made_once(tmp_path_factory, "undisturbed", lambda place: _run(prepared, place)))


@pytest.fixture(scope="session")
def undisturbed_pair(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with two workers of Ray, whose sums are rounded otherwise."""
    return _teacher(
        made_once(tmp_path_factory, "undisturbed-pair", lambda place: _run(prepared, place, mode="ray", workers=2))
    )


def _run(prepared: Path, place: Path, **runtime: str | int) -> None:
    lab = Lab.copy(prepared, place / "project", **runtime)
    lab.finish(lab.start("stage", STAGE))
    (place / "teacher").write_text(lab.model())


def _teacher(place: Path) -> str:
    return (place / "teacher").read_text()
