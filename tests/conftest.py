"""What every test starts from: one torch thread, nobody's own settings, no MLflow store but its own; its tier."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

# Set before torch is imported, so that subprocesses and Ray workers inherit it: the networks of the tests are
# so small that more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DVC_NO_ANALYTICS", "true")

import pytest
import torch

from ayf_core.training.running import can_compile
from pipelines.execution.own_ray import prepare_environment
from tests import scheduling
from tests.made_once import made_once

# Ray reads its settings when it is imported, and some tests import it before a stage or a sweep would set them.
prepare_environment()

# Settings with which a shell, DVC or Slurm would change what a stage does or where it writes.
_FOREIGN_SETTINGS = (
    "AYF_RUNTIME",
    "DVC_ROOT",
    "DVC_STAGE",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_RUN_ID",
    "RAY_ADDRESS",
)


def pytest_configure(config: pytest.Config) -> None:
    """One thread in this process too, whatever OMP_NUM_THREADS was; no signal ignored, as under nohup or in a job."""
    torch.set_num_threads(1)
    for signum, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, usual)


SLOW = ("browser", "compiler", "postgres", "ray", "slurm")
"""Whatever needs one of these starts programs that take seconds to come up."""
SLOW_SECONDS = 600
"""Limit of a slow test that names none of its own; pyproject.toml has that of the others."""


@pytest.hookimpl(tryfirst=True)  # before `-m` decides
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow ones as slow, the longest first; skip, with the reason, what this machine cannot run."""
    items.sort(key=lambda item: scheduling.turn(item.nodeid))
    for item in items:
        if any(item.get_closest_marker(marker) for marker in SLOW):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    lacking = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device here",
        "compiler": None if can_compile() else "no C++ compiler here (torch.compile needs one)",
        "slurm": None if shutil.which("sbatch") else "no Slurm here (sbatch not found)",
        "browser": None
        if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
        else "no headless browser here",
    }
    for item in items:
        for marker, reason in lacking.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)  # unknown without pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Several processes share the tests out as tests/scheduling.py says, unless another way was asked for."""
    return scheduling.units_longest_first(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def no_foreign_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test that names no MLflow store gets one of its own, never the person's or the repository's."""
    for name in _FOREIGN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'stray-mlflow.db'}")


@pytest.fixture(autouse=True)
def stores_begin_as_copies(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A new SQLite store of this process begins as a copy of an empty one: MLflow takes seconds to make its tables."""
    store = sys.modules.get("pipelines.tracking.store")
    if store is None:  # the test has nothing to do with MLflow, whose import takes seconds as well
        return
    make = store._with_experiment

    def with_experiment(database: Path, artifacts: Path) -> str:
        if not database.exists():
            shutil.copyfile(made_once(tmp_path_factory, "empty-store", _make_empty_store) / "empty.db", database)
        return make(database, artifacts)

    monkeypatch.setattr(store, "_with_experiment", with_experiment)


def _make_empty_store(place: Path) -> None:
    """All tables, as MLflow makes them, and no experiment of the project's."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{place / 'made.db'}"
    client = MlflowClient(uri, registry_uri=uri)
    client.search_experiments()
    client.search_registered_models(max_results=1)
    with closing(sqlite3.connect(place / "made.db")) as made, closing(sqlite3.connect(place / "empty.db")) as empty:
        made.backup(empty)


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Notes a row of the table in docs/reliability.md, which docs/reliability.py makes from the report of the tests."""

    def tell(fault: str, *, lost: int, seconds: float, same: bool, then: str) -> None:
        row = {"fault": fault, "lost_steps": lost, "seconds": round(seconds, 1), "same_bytes": same, "then": then}
        record_property("fault", json.dumps(row))

    return tell


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of noise."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def smoke_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage of the smallest preset ran, in one process. To read or to copy."""
    from tests.chain import make_smoke_chain

    return made_once(tmp_path_factory, "smoke-chain", make_smoke_chain)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of DVC's whose stages before the teacher are made, by `dvc repro`. To copy."""
    from tests.reliability.lab import Lab

    return made_once(tmp_path_factory, "prepared", Lab.prepare)
