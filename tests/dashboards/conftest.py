"""A made-up store by the contract, written once for all tests of the dashboards, and a headless Chromium."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def load_made_up_store() -> ModuleType:
    spec = importlib.util.spec_from_file_location("made_up_store", Path(__file__).with_name("made_up_store.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def made_up() -> ModuleType:
    return load_made_up_store()


@pytest.fixture(scope="session")
def store(made_up: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two versions of the pipeline, the older one worse, a sweep with one metric and one with two.

    `store.old` and `store.new` are ids by stage, `store.sweep` and `store.pair` those of the sweeps.
    """
    written = made_up.MadeUpStore(tmp_path_factory.mktemp("store"))
    written.old = written.add_pipeline(scale=2.0)
    written.new = written.add_pipeline()
    written.sweep = written.add_sweep("distill")
    written.pair = written.add_sweep("pair", metrics=("fd/nfe_2", "recall/nfe_2"))
    return written


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=CHROMIUM_ARGUMENTS)
        yield opened
        opened.close()
