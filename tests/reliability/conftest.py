"""The prepared project and the run that nothing happened to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.lab import STAGE, Lab


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages before the teacher are made."""
    return Lab.prepare(tmp_path_factory.mktemp("prepared") / "project")


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The teacher of a run that nothing happened to, with one worker."""
    lab = Lab.copy(prepared, tmp_path_factory.mktemp("undisturbed") / "project")
    lab.finish(lab.start("stage", STAGE))
    return lab


@pytest.fixture(scope="session")
def undisturbed_pair(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The same with two workers of Ray, whose sums are rounded otherwise."""
    lab = Lab.copy(prepared, tmp_path_factory.mktemp("pair") / "project", mode="ray", workers=2)
    lab.finish(lab.start("stage", STAGE))
    return lab
