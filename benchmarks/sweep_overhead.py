"""What the sweep's layers cost a trial: ledger, MLflow run, view and scheduler memory, beside plain Ray Tune.

    python benchmarks/sweep_overhead.py [--trials 20] [--repeats 3]

Baseline: the same trivial objective (three reports, no training) through `ray.tune.Tuner` with ASHA, random search, the
same Ray, the same number at once. Runs alternate, each in a process of its own; counted are the seconds from the
Tuner's call to its return (here, until MLflow knows everything too), divided by the trials. Starting Ray and importing
is in neither.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = 2
RATE = "distill.emd.training.learning_rate"
METRIC = "fd/nfe_2"
SWEEP = f"""
question: What does a trial cost?
stages: [distill@emd]
metrics: [{METRIC}]
space:
  {RATE}: {{{{low: 1.0e-4, high: 1.0e-2, log: true}}}}
search: random
trials: {{trials}}
scheduler: asha
measure_every: 200
"""


def objective(settings: dict[str, Any], job: Any = None) -> None:
    """Three measurements that follow from the point; nothing is trained."""
    from ray import tune

    for step in (200, 600, 2000):
        tune.report({"step": step, METRIC: settings["point"][RATE] * 1000 / step})


def make_project(root: Path, trials: int) -> None:
    """The repository's stages and settings, with inputs that are there and empty: nothing reads them."""
    from pipelines.declarations import read_declarations
    from pipelines.params import from_preset, write

    for name in ("ayf_core", "pipelines", "conf", "dvc.yaml"):
        (root / name).symlink_to(ROOT / name)
    write(root, from_preset(root, "digits"), "digits")
    inputs = {*read_declarations(root)["distill@emd"].deps, "models/features"}
    for path in inputs:
        if not (root / path).exists():
            (root / path).mkdir(parents=True)
    (root / "sweeps").mkdir()
    (root / "sweeps/trivial.yaml").write_text(SWEEP.format(trials=trials))


def through_this_project(root: Path, trials: int) -> float:
    """Seconds of `Tuner.fit` within `run_sweep`, and of what is still to tell MLflow then."""
    from pipelines.config import RuntimeConfig
    from pipelines.execution import prepare_environment
    from sweeps import runner

    make_project(root, trials)
    prepare_environment()
    from ray import tune

    from sweeps.story import Story

    spent: list[float] = []

    def timed(call: Callable) -> Callable:
        def timing(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                spent.append(time.perf_counter() - began)

        return timing

    # Until MLflow knows everything, too.
    tune.Tuner.fit, Story.finish = timed(tune.Tuner.fit), timed(Story.finish)
    runtime = RuntimeConfig(mode="inline", device="cpu", trials_at_once=AT_ONCE)
    runner.run_sweep(root, "trivial", runtime, trainable=objective)
    return sum(spent)


def through_ray_tune_alone(root: Path, trials: int) -> float:
    """The same objective, space, scheduler and number at once, with Tune's own files as they are by default."""
    from pipelines.execution import OwnRay, prepare_environment

    prepare_environment()
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler

    scheduler = AsyncHyperBandScheduler(
        time_attr="step", metric=METRIC, mode="min", grace_period=200, reduction_factor=3, max_t=2000
    )
    with OwnRay(AT_ONCE):
        tuner = tune.Tuner(
            tune.with_resources(objective, {"CPU": 1}),
            param_space={"point": {RATE: tune.loguniform(1e-4, 1e-2)}},
            tune_config=tune.TuneConfig(
                scheduler=scheduler, num_samples=trials, max_concurrent_trials=AT_ONCE, reuse_actors=True
            ),
            run_config=tune.RunConfig(name="plain", storage_path=str(root), verbose=0),
        )
        began = time.perf_counter()
        tuner.fit()
        return time.perf_counter() - began


WAYS = {"project": through_this_project, "plain": through_ray_tune_alone}


def measure_apart(way: str, trials: int) -> float:
    """Seconds a trial, in a fresh process."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    command = [sys.executable, __file__, "--way", way, "--trials", str(trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1]) / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="trials of each run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--way", choices=tuple(WAYS), help="one run in this process; prints its seconds")
    arguments = parser.parse_args()
    if arguments.way:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(WAYS[arguments.way](Path(folder), arguments.trials)))
        return
    ratios = []
    for _ in range(arguments.repeats):
        plain, project = (measure_apart(way, arguments.trials) for way in ("plain", "project"))
        ratios.append(project / plain)
        print(f"seconds a trial: plain Ray Tune {plain:.2f}, this project {project:.2f}, ratio {ratios[-1]:.2f}")
    print(f"ratio: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}], {arguments.trials} trials")


if __name__ == "__main__":
    main()
