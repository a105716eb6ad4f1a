"""Benchmarks are run by hand: here they are only imported, so that a setting they lack is noticed."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("[a-z]*.py")))
def test_a_benchmark_can_be_imported(monkeypatch, name):
    monkeypatch.syspath_prepend(str(FOLDER))
    assert importlib.import_module(name).__doc__
