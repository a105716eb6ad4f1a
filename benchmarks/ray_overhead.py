"""What Ray costs a training stage: seconds to start and stop, CPU seconds, its share of the wall time in between.

    python benchmarks/ray_overhead.py [--steps 1000] [--repeats 3]

Baseline: the same loop, same threads, logging and checkpoints, through `LocalContext` in a plain process. `ray` starts
a Ray of the stage's own, `shared` finds the one of its chain. Runs alternate (plain, inline, Ray, plain, ...), each in
a process of its own, so that a machine that gets busy slows all. CPU seconds are those of all processes. The loop is a
small network trained with Adam; `train` may be any training function that returns when its first step began and when
its last ended.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from chain import CpuSeconds, keep_orphans, summary, wait_for_orphans  # beside this file

from ayf_core.training.context import LocalContext
from pipelines.execution.ray_train import run_training
from pipelines.execution.shared_ray import CHAIN
from pipelines.settings.runtime import RuntimeConfig

LOG_EVERY, CHECKPOINT_EVERY, BATCH, WIDTH = 20, 200, 128, 256
THREADS = 1
MODES = ("plain", "inline", "ray", "shared")


def train(config: dict, context) -> dict:
    """Regress a fixed random function; log and keep checkpoints at the cadence of the default runtime."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, WIDTH), torch.nn.SiLU()]
    layers += [part for _ in range(6) for part in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.SiLU())]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 16))
    optimiser = torch.optim.Adam(network.parameters())
    began = time.time()
    for step in range(1, config["steps"] + 1):
        x = torch.randn(BATCH, 16)
        loss = (network(x) - x.sin()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % LOG_EVERY == 0:
            context.log(step, config["steps"], {"loss": loss.item()})
        if step % CHECKPOINT_EVERY == 0:
            context.save_checkpoint(step, {"network": network.state_dict(), "optimiser": optimiser.state_dict()})
    return {"began": began, "ended": time.time()}


def measure(mode: str, steps: int) -> dict[str, float]:
    """One run in this process: seconds before the first step, in the loop, and after the last step."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        called = time.time()
        if mode == "plain":
            times = train({"steps": steps}, LocalContext(folder))
        else:
            runtime = RuntimeConfig(
                mode="inline" if mode == "inline" else "ray", threads_per_worker=THREADS, device="cpu"
            )
            times = run_training(
                train, {"steps": steps}, folder=Path(folder), name=mode, runtime=runtime, on_log=lambda records: None
            )
        done = time.time()
    return {"start": times["began"] - called, "loop": times["ended"] - times["began"], "stop": done - times["ended"]}


def measure_apart(mode: str, steps: int, folder: Path) -> dict[str, float]:
    """The same in a fresh process, imports of Ray included, in `folder`, the project of the chain."""
    environment = {name: value for name, value in os.environ.items() if name != CHAIN}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    if mode == "shared":
        environment[CHAIN] = f"{os.getpid()}/1"
    command = [sys.executable, str(Path(__file__).resolve()), "--mode", mode, "--steps", str(steps)]
    before = len(psutil.Process().children())
    with CpuSeconds() as cpu:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    wait_for_orphans(before)
    return json.loads(done.stdout.splitlines()[-1]) | {"cpu": cpu.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="steps of each run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of runs (default: %(default)s)")
    parser.add_argument("--mode", choices=MODES, help="one run in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(measure(arguments.mode, arguments.steps)))
        return
    keep_orphans()
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        measure_apart("shared", 1, Path(folder))  # starts the Ray that the others find
        for _ in range(arguments.repeats):
            for mode, found in runs.items():
                found.append(measure_apart(mode, arguments.steps, Path(folder)))
    print(f"{arguments.repeats} repeats of {arguments.steps} steps; medians, and the quartiles in brackets")
    for mode in MODES[1:]:
        start_up = [run["start"] + run["stop"] for run in runs[mode]]
        start, stop = (statistics.median(run[part] for run in runs[mode]) for part in ("start", "stop"))
        beside = [run["cpu"] - plain["cpu"] for run, plain in zip(runs[mode], runs["plain"], strict=True)]
        print(f"start-up, {mode}: {summary(start_up)} s (start {start:.1f}, stop {stop:.1f})")
        print(f"CPU seconds beside the plain process, {mode}: {summary(beside)}")
    for mode in MODES[1:]:
        ratios = [run["loop"] / plain["loop"] for run, plain in zip(runs[mode], runs["plain"], strict=True)]
        print(f"loop, {mode} / plain: {summary(ratios)}")
    plain_step = statistics.median(run["loop"] for run in runs["plain"]) / arguments.steps
    print(f"a step of the plain loop: {1000 * plain_step:.1f} ms")


if __name__ == "__main__":
    main()
