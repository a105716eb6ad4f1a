"""Folders that take long to make and that many tests only read or copy: made once a test run, for all its processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, which the first process that asks lets `make` fill; the others wait for it.

    Nobody may change what is in it: a test that writes works on a copy.

    Raises:
        RuntimeError: another process of this run tried and failed; that one says why.
    """
    place = shared(factory) / name
    with place.with_name(f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole, failed = (place.with_name(f"{name}.{end}") for end in ("whole", "failed"))
        if failed.exists():
            raise RuntimeError(f"{name} could not be made: see the first test that needed it")
        if not whole.exists():
            failed.touch()
            place.mkdir()
            make(place)
            failed.rename(whole)
    return place


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run have in common."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    place.mkdir(exist_ok=True)
    return place
