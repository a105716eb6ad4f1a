"""How OpenMP's threads wait: steps a second of the default teacher, on quiet cores and beside another process.

    python benchmarks/threads.py [--repeats 9] [--steps 60] [--spin 1000 10000 100000]

Baseline: as many threads as cores, waiting as torch's OpenMP (libgomp) does by itself. Beside it the same with
OMP_WAIT_POLICY=passive and with several GOMP_SPINCOUNT (how often a thread looks before it sleeps), and fewer threads.
A figure is of a process of its own, since OpenMP reads its settings once: a flow-matching step of a transformer 96 wide
and 3 deep, as the preset digits' teacher is, on a batch of 64. Each setting runs quiet and beside a process that counts
for ever, pinned to one core; settings alternate within a repetition. Steps a second of wall time: median and, in
brackets, quartiles. Quiet is only as quiet as the machine: its load is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

STEP = """
import sys, time, torch
from ayf_core.conditions import Condition, class_labels
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.base import Batch
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.randomness import StepRandom
from ayf_core.times import LogitNormalTime

threads, steps = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
torch.manual_seed(0)
kind = {"width": 96, "depth": 3, "heads": 4, "patch_size": 1}
network = build_network(NetworkSpec(kind="dit", settings=kind, shape=(4, 4, 4), conditions=class_labels(10)))
times = LogitNormalTime(mean=0.0, std=1.0)
loss_of = FlowMatching(time_law=times, conditions=class_labels(10), label_dropout=0.1)
optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
batch = Batch(torch.randn(64, 4, 4, 4), Condition(labels=torch.arange(64) % 10))
for step in range(5 + steps):
    if step == 5:
        began = time.perf_counter()
    optimiser.zero_grad(set_to_none=True)
    loss_of(network, batch, StepRandom(0, step, 64), step).value.backward()
    optimiser.step()
print(steps / (time.perf_counter() - began))
"""

Setting = tuple[str, int, dict[str, str]]


def settings(spins: list[int]) -> list[Setting]:
    """Label, threads, and what the environment says of waiting."""
    cores = len(os.sched_getaffinity(0))
    waiting = [("as it is", {}), ("passive", {"OMP_WAIT_POLICY": "passive"})]
    waiting += [(f"spin {spin:,}", {"GOMP_SPINCOUNT": str(spin)}) for spin in spins]
    found: list[Setting] = [(f"{cores} threads, {words}", cores, dict(how)) for words, how in waiting]
    return [*found, (f"{max(1, cores // 2)} thread(s)", max(1, cores // 2), {})]


def steps_a_second(setting: Setting, steps: int) -> float:
    _, threads, how = setting
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", STEP, str(threads), str(steps)]
    return float(subprocess.run(command, env=plain | how, stdout=subprocess.PIPE, text=True, check=True).stdout)


@contextmanager
def a_core_taken() -> Iterator[None]:
    """While another process counts on one of the cores."""
    core = min(os.sched_getaffinity(0))
    # It ends by itself where this process is killed.
    code = f"import os; os.sched_setaffinity(0, [{core}]); parent = os.getppid()\nwhile os.getppid() == parent: pass"
    other = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.2)
        yield
    finally:
        other.kill()
        other.wait()


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:5.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--spin", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    asked = parser.parse_args()
    tried = settings(asked.spin)
    quiet: dict[str, list[float]] = {setting[0]: [] for setting in tried}
    beside: dict[str, list[float]] = {setting[0]: [] for setting in tried}
    load = os.getloadavg()[0]
    for repeat in range(max(2, asked.repeats)):
        for setting in tried:
            quiet[setting[0]].append(steps_a_second(setting, asked.steps))
            with a_core_taken():
                beside[setting[0]].append(steps_a_second(setting, asked.steps))
        print(f"repetition {repeat + 1} done", file=sys.stderr, flush=True)
    print(f"steps a second, quiet and beside a process on one core (load before: {load:.1f})")
    for name in quiet:
        print(f"  {name:26}  {spread(quiet[name])}   {spread(beside[name])}")
