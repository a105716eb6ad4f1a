"""Kills the pipeline at random moments, again and again, then holds its result against one that was left alone.

    python -m tests.reliability.soak --kills 50 [--seed 0] [--on-ray 10]

Every kill is a SIGKILL of the stage, of its worker on Ray, or of `dvc` alone, after a random time; then `dvc repro` is
started again at once. A pipeline that comes to its end before the kills are spent is compared and begun afresh.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipelines.project.declarations import fingerprint, read_declarations
from tests.reliability.lab import Lab

LONGER = [f"{part}.training.steps=200" for part in ("codec", "features", "teacher", "weak_teacher")]
LONGER += [f"{part}.training.steps=100" for part in ("distill.emd", "distill.lmd", "adversarial")]
"""Long enough that a random moment may find a stage training, and not only starting."""


@dataclass
class Outcome:
    """What a soak did."""

    kills: dict[str, int] = field(default_factory=dict)
    pipelines: int = 0
    seconds: float = 0.0
    differing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        struck = ", ".join(f"{count} of {target}" for target, count in sorted(self.kills.items()))
        same = "all outputs equal to the undisturbed run" if not self.differing else f"DIFFERENT: {self.differing}"
        return f"{sum(self.kills.values())} kills ({struck}), {self.pipelines} whole pipelines: {same}"


def soak(
    place: Path,
    kills: int,
    seed: int = 0,
    on_ray: int = 0,
    longest: float = 20.0,
    changes: Sequence[str] = LONGER,
    until: str | None = None,
    expected: dict[str, str] | None = None,
) -> Outcome:
    """Run the smoke pipeline (up to a stage) under `kills` kills, the last `on_ray` while it trains on Ray.

    Its outputs are held against `expected`; without that, against those of a run that is left alone.
    """
    began = time.monotonic()
    fresh = Lab.prepare(place / "fresh", *changes, until=None)
    repro = ["dvc", "repro", *([until] if until else [])]
    if expected is None:
        with closing(Lab.copy(fresh, place / "quiet")) as quiet:
            quiet.finish(quiet.start(*repro), seconds=1800)
            expected = outputs(quiet.root)
    chance, outcome = random.Random(seed), Outcome()
    lab = Lab.copy(fresh, place / "struck")
    try:
        for kill in range(kills):
            mode = "ray" if kill >= kills - on_ray else "inline"
            lab.set_runtime(mode)
            while (target := strike(lab, repro, chance, longest, mode)) is None:  # it came to its end
                compare(lab, expected, outcome)
                shutil.rmtree(lab.root)
                lab = Lab.copy(fresh, place / "struck", mode=mode)
            outcome.kills[target] = outcome.kills.get(target, 0) + 1
            print(f"kill {kill + 1}: {target}", flush=True)
        lab.finish(lab.start(*repro), seconds=1800)
        compare(lab, expected, outcome)
    finally:
        lab.close()
    outcome.seconds = time.monotonic() - began
    return outcome


def strike(lab: Lab, repro: Sequence[str], chance: random.Random, longest: float, mode: str) -> str | None:
    """Start `dvc repro`, kill a part of it after a random time; what was killed, None if the pipeline ended before."""
    process = lab.start(*repro)
    parts = {"inline": ["dvc", "stage"], "ray": ["dvc", "stage", "worker", "worker"]}
    wanted, moment = chance.choice(parts[mode]), chance.uniform(1.0, longest)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=moment)
    if process.poll() is None and (wanted != "worker" or appears("RayTrainWorker", lab, process)):
        return kill_part(lab, process, wanted)
    assert process.wait() == 0, lab.said(process)
    return None


def appears(words: str, lab: Lab, process: subprocess.Popen[bytes]) -> bool:
    """Wait for a process below `process`; False if the latter ends before."""
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            if lab.processes(words, process):
                return True
        time.sleep(0.1)
    return False


def kill_part(lab: Lab, process: subprocess.Popen[bytes], wanted: str) -> str:
    """Kill the wanted part, or else one that is there, and see `dvc` end."""
    for target, words in {"worker": "RayTrainWorker", "stage": "-m pipelines"}.items():
        found = lab.processes(words, process) if wanted in (target, "worker") else []
        if target == "stage":
            found = [one for one in found if is_stage(one)][:1]
        if not found:
            continue
        with suppress(psutil.NoSuchProcess):
            found[-1].kill()
        if target == "worker":  # it is replaced: the rest goes on for a while, then dies as well
            time.sleep(5.0)
            process.kill()
        process.wait(timeout=300)
        return target
    process.kill()
    process.wait(timeout=120)
    return "dvc"


def is_stage(process: psutil.Process) -> bool:
    """The first of these: not the shell around it, nor its copy that is about to become another process."""
    with suppress(psutil.Error):
        return process.cmdline()[1:3] == ["-m", "pipelines"]
    return False


def outputs(root: Path) -> dict[str, str]:
    """Fingerprints of all that the stages declare and have made."""
    declared = [out for stage in read_declarations(root).values() for out in stage.outputs]
    return {out: fingerprint(root / out) for out in declared if (root / out).exists()}


def compare(lab: Lab, expected: dict[str, str], outcome: Outcome) -> None:
    found = outputs(lab.root)
    outcome.pipelines += 1
    outcome.differing += [out for out in expected if found.get(out) != expected[out]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds from the start of dvc to a kill, at most")
    parser.add_argument("--on-ray", type=int, default=10, help="so many of the kills while training on Ray")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        outcome = soak(Path(place), arguments.kills, arguments.seed, arguments.on_ray, arguments.longest)
    print(f"{outcome}; {outcome.seconds / 60:.0f} minutes")
    raise SystemExit(bool(outcome.differing))


if __name__ == "__main__":
    main()
