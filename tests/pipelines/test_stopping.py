"""A stop that a job asks for by a file: a stage that trains looks for itself, one that does not ends at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.execution.light_trainer import light_trainer
from pipelines.execution.ray_train import InThread

PROGRAM = """
import contextlib, pathlib, signal, sys, time
from pipelines.execution.stopping import heed_stop_file, on_sigterm, stoppable

signal.signal(signal.SIGTERM, on_sigterm)
heed_stop_file()
training = pathlib.Path(sys.argv[1])
with stoppable(training) if training.is_dir() else contextlib.nullcontext():
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("trains", "status"), [(False, 143), (True, 0)])
def test_the_stop_file_of_a_job_ends_a_stage_that_does_not_train(
    tmp_path: Path, repository: Path, trains: bool, status: int
) -> None:
    stop_file, training = tmp_path / "stop", tmp_path / "training"
    if trains:
        training.mkdir()
    environment = {**os.environ, "AYF_STOP_FILE": str(stop_file), "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", PROGRAM, str(training), "4" if trains else "100"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        stop_file.touch()
        assert process.wait(timeout=60) == status


class Waiting:
    """A controller of Ray Train that waits for its workers."""

    begun = False

    async def run(self) -> None:
        self.begun = True
        while True:
            await asyncio.sleep(0.01)


@pytest.mark.ray  # only imported
def test_a_training_that_is_abandoned_leaves_no_controller_that_calls_ray(tmp_path: Path) -> None:
    trainer: Any = object.__new__(light_trainer(tmp_path))
    trainer.abandon()  # nothing has begun
    controller = Waiting()
    fit = InThread(lambda: asyncio.run(trainer._followed(controller)))
    while not controller.begun:
        fit.wait(0.01)
    trainer.abandon()
    with pytest.raises(asyncio.CancelledError):
        fit.result()
    trainer.abandon()  # it is over
