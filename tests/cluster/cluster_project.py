"""A small project that submits to a Slurm; its teacher takes long enough to be disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.slurm_cluster import SlurmCluster

CODE = ("ayf_core", "dashboards", "pipelines", "sweeps", "conf", "plugins", "dvc.yaml")
STEPS = 1200
CHECKPOINT_EVERY = 100


class Project:
    """A copy of this project that submits to a Slurm."""

    def __init__(self, root: Path, slurm: SlurmCluster) -> None:
        self.root = root
        self.slurm = slurm

    def run(self, *command: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess:
        """Run a command in the project; `ayf` and `dvc` are this environment's."""
        named = {"ayf": ["-m", "pipelines.commands.main"], "dvc": ["-m", "dvc"]}
        return subprocess.run(
            [sys.executable, *named[command[0]], *command[1:]],
            cwd=self.root,
            env=self.environment() | environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_", "AYF_"))}
        ours = self.slurm.environment()
        path = f"{Path(sys.executable).parent}:{ours['PATH']}"
        return kept | ours | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "CI": "true", "PATH": path}

    def submit(self, *words: str) -> str:
        """Submit without following; the job's id."""
        done = self.run("ayf", "submit", *words, "--detach")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.split("job ")[-1].split(":")[0]

    def log(self, job: str) -> str:
        return "".join(file.read_text(errors="replace") for file in self.root.glob(f"runs/jobs/*/{job}_*_log.out"))

    def step(self) -> int:
        """The last step that the teacher's training noted; 0 before the first."""
        lines = [
            line
            for file in self.root.glob("runs/train_teacher/*/training/metrics.jsonl")
            for line in file.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        return json.loads(lines[-1])["step"] if lines else 0

    def wait_for_step(self, step: int, job: str, seconds: float = 300) -> int:
        self._wait(lambda: self.step() >= step, f"step {step}", job, seconds)
        return self.step()

    def wait_for_end(self, job: str, seconds: float = 480) -> str:
        states = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}
        try:
            return self.slurm.wait_for(job, states, seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(job)[-4000:]}") from error

    def _wait(self, ready: Callable[[], bool], what: str, job: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = self.slurm.state(job) in {"COMPLETED", "FAILED", "CANCELLED"}
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"no {what} of job {job}:\n{self.log(job)[-4000:]}")
            time.sleep(0.1)

    def hash(self, output: str = "models/teacher") -> str:
        """Of every byte of an output."""
        digest = hashlib.sha256()
        for file in sorted((self.root / output).rglob("*")):
            if file.is_file():
                digest.update(f"{file.relative_to(self.root)}\0".encode() + file.read_bytes())
        return digest.hexdigest()
