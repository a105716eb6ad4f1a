"""What the whole chain takes: seconds, and CPU seconds of all its processes, Ray's included.

    python benchmarks/chain.py [--preset smoke] [--repeats 1] [--busy] [--before CHECKOUT]

Baseline: `dvc repro`, one stage after another, of the same code, or of an older checkout (`--before`). Runs alternate,
each in a fresh project with the code copied into it, so that a machine that gets busy slows all. `--busy` keeps one
core taken by a loop meanwhile. `--preset ""` takes params.yaml as it stands in the repository.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
CODE = ("ayf_core", "dashboards", "pipelines", "sweeps", "conf", "plugins", "dvc.yaml", "params.yaml", ".dvcignore")
BIN = Path(sys.executable).parent


def keep_orphans() -> None:
    """Have processes whose parent ends become this one's, so that their CPU time is counted (Linux)."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


class CpuSeconds:
    """Of all processes below this one while the context lasts: looked at again and again, as Ray waits for none of its.

    What a process uses after it was last looked at is missed: of a short-lived one up to a fifth of a second.
    """

    def __init__(self, without: int = 0) -> None:
        self._seen: dict[tuple[int, float], float] = {}
        self._before: dict[tuple[int, float], float] = {}
        self._without = without
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> CpuSeconds:
        self._look()
        self._before = dict(self._seen)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        return sum(self._seen.values()) - sum(self._before.values())

    def _repeat(self) -> None:
        while not self._over.wait(0.2):
            self._look()

    def _look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.pid != self._without:
                    self._seen[process.pid, process.create_time()] = sum(process.cpu_times()[:2])


def wait_for_orphans(until: int) -> None:
    """Until no more than so many children are left: those of the run before may still be ending."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if len(psutil.Process().children()) <= until:
            return
        time.sleep(0.1)


@contextmanager
def one_core_taken(busy: bool) -> Iterator[int]:
    """A loop that keeps one core busy meanwhile, where that is wanted; its process, or 0."""
    if not busy:
        yield 0
        return
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield loop.pid
    finally:
        loop.kill()
        loop.wait()


def project(code: Path, preset: str, place: Path) -> None:
    """A project with this code, in which nothing has run."""
    for name in CODE:
        copy = shutil.copytree if (code / name).is_dir() else shutil.copyfile
        copy(code / name, place / name)
    shutil.copytree(code / "data", place / "data", ignore=shutil.ignore_patterns("latents"))
    run(place, "dvc", "init", "--no-scm", "-q")
    if preset:
        run(place, "pipelines.commands.main", "params", "use", f"preset={preset}")


def run(place: Path, module: str, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(place), "PATH": f"{BIN}:{os.environ['PATH']}", "CI": "true"}
    with (place / "said.txt").open("a") as said:
        command = [sys.executable, "-m", module, *words]
        status = subprocess.run(command, cwd=place, env=environment, stdout=said, stderr=said, check=False).returncode
    if status:
        sys.exit((place / "said.txt").read_text()[-4000:])


def measure(code: Path, preset: str, module: str, taken: int) -> tuple[float, float]:
    """Seconds and CPU seconds of one run of the chain."""
    with tempfile.TemporaryDirectory() as folder:
        project(code, preset, Path(folder))
        began = time.monotonic()
        with CpuSeconds(taken) as cpu:
            run(Path(folder), module, "repro")
        seconds = time.monotonic() - began
        wait_for_orphans(1 if taken else 0)
        return seconds, cpu.seconds


def summary(values: list[float]) -> str:
    """Median, and the quartiles where there are enough values for them."""
    if len(values) < 3:
        return f"{statistics.median(values):.4g} {[round(value, 1) for value in values]}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="smoke", help="'' = params.yaml as it is (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each (default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="keep one core taken meanwhile")
    parser.add_argument("--before", type=Path, help="a checkout whose `dvc repro` is the baseline")
    arguments = parser.parse_args()
    keep_orphans()
    ways = {"dvc repro": (ROOT, "dvc"), "ayf repro": (ROOT, "pipelines.commands.main")}
    if arguments.before:
        ways = {"dvc repro, before": (arguments.before.resolve(), "dvc")} | ways
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with one_core_taken(arguments.busy) as taken:
        for _ in range(arguments.repeats):
            for way, (code, module) in ways.items():
                found[way].append(measure(code, arguments.preset, module, taken))
                print(f"  {way}: {found[way][-1][0]:.0f} s, {found[way][-1][1]:.0f} CPU-s", flush=True)
    beside = "one core taken" if arguments.busy else "quiet, if nobody else works here"
    print(f"{arguments.preset or 'params.yaml'}, {arguments.repeats} runs of each, {os.cpu_count()} cores, {beside}")
    baseline = next(iter(found.values()))
    for way, runs in found.items():
        seconds, cpu = zip(*runs, strict=True)
        ratios = [run[0] / base[0] for run, base in zip(runs, baseline, strict=True)]
        print(f"{way}: {summary(list(seconds))} s, {summary(list(cpu))} CPU-s, {summary(ratios)} of the first line")


if __name__ == "__main__":
    main()
