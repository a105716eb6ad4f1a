"""A project of two toy stages, for tests that need a process: `python toy_project.py ROOT STAGE MODE`.

The training is a walk of a few numbers, exact in float64: an interrupted run is held to one that was not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from pipelines.execution.run import run_stage
from pipelines.execution.stage import Stage
from pipelines.execution.stopping import on_sigterm
from pipelines.settings.runtime import RuntimeConfig

DVC = """
stages:
  make:
    cmd: python -m pipelines make
    deps: [src.txt]
    params: [make]
    outs: [data/made]
  walk:
    matrix: {way: [up, down]}
    cmd: python -m pipelines walk@${item.way}
    deps: [data/made]
    params: [walk]
    outs: ["models/${item.way}"]
    metrics: [{"reports/${item.way}.json": {cache: false}}]
"""
PARAMS = "make: {size: 3}\nwalk: {steps: 60, sleep: 0.02}\n"


def write_project(root: Path, params: str = PARAMS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dvc.yaml").write_text(DVC)
    (root / "params.yaml").write_text(params)
    (root / "src.txt").write_text("source\n")
    return root


def runtime(mode: str = "inline", workers: int = 1) -> RuntimeConfig:
    return RuntimeConfig(
        mode=mode,
        workers=workers,
        threads_per_worker=1,
        device="cpu",
        system_metrics=False,
        checkpoint_every=10,
        tracking_retry_seconds=1.0,
    )


def train(config: dict, context) -> dict:
    """Add each step to three numbers; `kill_at`, `fail_at` and `bug_at` name steps that end the attempt."""
    from ayf_core.errors import AyfError, Preempted
    from ayf_core.training.checkpoints import load_state

    position, start = torch.zeros(3, dtype=torch.float64), 0
    checkpoint = context.latest_checkpoint()
    if checkpoint is not None:
        state = load_state(checkpoint)
        position, start = state["position"], state["step"]
    for step in range(start + 1, config["steps"] + 1):
        share = torch.full((3,), step / context.world_size, dtype=torch.float64)
        if context.world_size > 1:
            torch.distributed.all_reduce(share)
        position += share
        context.log(step, config["steps"], {"loss": 1 / step, "position": float(position[0])})
        if step % 10 == 0:
            context.save_checkpoint(step, {"step": step, "position": position})
        if step < config["steps"] and context.stop_asked():
            context.save_checkpoint(step, {"step": step, "position": position})
            raise Preempted(step)
        if checkpoint is None and step == config.get("kill_at") and context.rank == context.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == config.get("fail_at"):
            raise AyfError("the ground is missing; lay some")
        if step == config.get("bug_at"):
            raise KeyError("position")
        time.sleep(config.get("sleep", 0.0))
    return {"position": position.tolist(), "start": start, "workers": context.world_size}


def make(config: object, stage: Stage) -> None:
    folder = stage.output("data/made")
    folder.mkdir()
    (folder / "numbers.txt").write_text("1 2 3\n")


def walk(config: object, stage: Stage) -> None:
    result = stage.train(train, dict(stage.params["walk"]))
    way = stage.item["way"]
    model = stage.output(f"models/{way}")
    model.mkdir()
    (model / "model.json").write_text(json.dumps(result["position"]))
    stage.output(f"reports/{way}.json").write_text(json.dumps({"distance": result["position"][0]}))


def run(root: Path, name: str, mode: str = "inline", workers: int = 1) -> Stage:
    body = {"make": make, "walk": walk}[name.split("@")[0]]
    return run_stage(root, name, config=object(), runtime=runtime(mode, workers), body=body)


if __name__ == "__main__":
    # As __main__, Ray's workers receive `train` by value: they need not find this file.
    signal.signal(signal.SIGTERM, on_sigterm)
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 1)
