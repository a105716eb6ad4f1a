"""What the sweep's layers cost a trial: ledger, MLflow run, view and scheduler memory, beside plain Ray Tune.

    python benchmarks/sweep_overhead.py [--trials 20] [--repeats 10]

Baseline: the same trivial objective (three reports, no training) through `ray.tune.Tuner` with ASHA, random search, the
same Ray, the same number at once; once bare, and once importing torch, as whatever trains does: this project's workers
import it with the trial's code. Runs alternate, each in a process of its own. The seconds end with the Tuner (here,
once MLflow knows everything too) and begin at its call, or when the first trial starts; they are divided by the trials.
Starting Ray is in neither, nor is what the sweep does before and after: opening its parent run, telling its answer.
Workers start after the call, the second while the first may run trials already, so few trials say more of processes
than of layers; `--trials 200` says what one more trial costs.
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
from functools import partial
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
    from pipelines.project.declarations import read_declarations
    from pipelines.settings.params_file import from_preset, write

    for name in ("ayf_core", "pipelines", "conf", "dvc.yaml"):
        (root / name).symlink_to(ROOT / name)
    write(root, from_preset(root, "digits"), "digits")
    inputs = {*read_declarations(root)["distill@emd"].deps, "models/features"}
    for path in inputs:
        if not (root / path).exists():
            (root / path).mkdir(parents=True)
    (root / "sweeps").mkdir()
    (root / "sweeps/trivial.yaml").write_text(SWEEP.format(trials=trials))


def objective_with_torch(settings: dict[str, Any]) -> None:
    """The same in a process that could train."""
    import torch  # noqa: F401

    objective(settings)


class Clock:
    """When the Tuner was called, its first trial started, and everything was over."""

    def __init__(self) -> None:
        self._moments: dict[str, float] = {}

    def note(self, moment: str) -> None:
        """Note the present as a moment, unless it was before."""
        self._moments.setdefault(moment, time.perf_counter())

    def around(self, call: Callable, *, before: str = "", after: str = "") -> Callable:
        """The same call, with its beginning or end noted."""

        def noting(*arguments: Any, **named: Any) -> Any:
            if before:
                self.note(before)
            result = call(*arguments, **named)
            if after:
                self.note(after)
            return result

        return noting

    @property
    def seconds(self) -> dict[str, float]:
        """By where they begin: `call` or `first trial`."""
        return {begin: self._moments["over"] - self._moments[begin] for begin in BEGINNINGS}


def through_this_project(root: Path, trials: int) -> Clock:
    """A sweep, until MLflow knows everything."""
    from pipelines.execution.own_ray import prepare_environment
    from pipelines.settings.runtime import RuntimeConfig
    from sweeps import runner
    from sweeps.ledger import FAILED, Ledger

    make_project(root, trials)
    prepare_environment()
    from ray import tune

    from sweeps.recorder import TrialRecorder

    clock = Clock()
    tune.Tuner.fit = clock.around(tune.Tuner.fit, before="call")
    TrialRecorder.on_trial_start = clock.around(TrialRecorder.on_trial_start, before="first trial")
    TrialRecorder.finish = clock.around(TrialRecorder.finish, after="over")
    runtime = RuntimeConfig(mode="inline", device="cpu", trials_at_once=AT_ONCE)
    runner.run_sweep(root, "trivial", runtime, trainable=objective)
    ended = Ledger(root / "runs/sweeps/trivial/001/trials").ended
    assert [trial.status != FAILED for trial in ended] == [True] * trials
    return clock


def through_ray_tune_alone(root: Path, trials: int, function: Callable = objective) -> Clock:
    """The same objective, space, scheduler and number at once, with Tune's own files as they are by default."""
    from pipelines.execution.own_ray import OwnRay, prepare_environment

    prepare_environment()
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler

    clock = Clock()

    class FirstTrial(tune.Callback):
        def on_trial_start(self, *_: Any, **__: Any) -> None:
            clock.note("first trial")

    scheduler = AsyncHyperBandScheduler(
        time_attr="step",
        metric=METRIC,
        mode="min",
        grace_period=200,
        reduction_factor=3,
        max_t=2000,
        stop_last_trials=False,
    )
    with OwnRay(AT_ONCE):
        tuner = tune.Tuner(
            tune.with_resources(function, {"CPU": 1}),
            param_space={"point": {RATE: tune.loguniform(1e-4, 1e-2)}},
            tune_config=tune.TuneConfig(
                scheduler=scheduler, num_samples=trials, max_concurrent_trials=AT_ONCE, reuse_actors=True
            ),
            run_config=tune.RunConfig(name="plain", storage_path=str(root), verbose=0, callbacks=[FirstTrial()]),
        )
        clock.note("call")
        results = tuner.fit()
        clock.note("over")
    assert (len(results), results.num_errors) == (trials, 0)
    return clock


BEGINNINGS = ("call", "first trial")
PROJECT = "this project"
WAYS = {
    "plain": through_ray_tune_alone,
    "plain, torch": partial(through_ray_tune_alone, function=objective_with_torch),
    PROJECT: through_this_project,
}


def measure_apart(way: str, trials: int) -> dict[str, float]:
    """Seconds a trial by where they begin, in a fresh process."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    command = [sys.executable, __file__, "--way", way, "--trials", str(trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {begin: seconds / trials for begin, seconds in json.loads(done.stdout.splitlines()[-1]).items()}


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="trials of each run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="rounds of runs (default: %(default)s)")
    parser.add_argument("--way", choices=tuple(WAYS), help="one run in this process; prints its seconds")
    arguments = parser.parse_args()
    if arguments.way:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(WAYS[arguments.way](Path(folder), arguments.trials).seconds))
        return
    rounds = [{way: measure_apart(way, arguments.trials) for way in WAYS} for _ in range(arguments.repeats)]
    print(f"seconds a trial, {arguments.trials} trials, {arguments.repeats} rounds: median [range]")
    for begin in BEGINNINGS:
        for way in WAYS:
            line = f"from {begin}: {way} {spread([round_[way][begin] for round_ in rounds])}"
            if way != PROJECT:
                line += f"; ratio of this project to it {spread([r[PROJECT][begin] / r[way][begin] for r in rounds])}"
            print(line)


if __name__ == "__main__":
    main()
