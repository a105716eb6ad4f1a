"""A small project whose teacher takes long enough to be disturbed, and what one sees of it from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipelines.project import dvc_lock
from pipelines.project.declarations import fingerprint
from pipelines.settings import params_file as params

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = ("ayf_core", "dashboards", "pipelines", "sweeps", "conf", "plugins", "dvc.yaml")
STAGE = "train_teacher"
STEPS, CHECKPOINT_EVERY = 400, 50
DISTURBED_AT = 120
"""Between two checkpoints, with most of the training to come."""


class Lab:
    """A project in a folder of its own.

    Args:
        root: its place.
        mode: `inline`, or `ray`: a Ray of the stage's own.
        workers: of the training.
    """

    def __init__(self, root: Path, mode: str = "inline", workers: int = 1) -> None:
        self.root = root
        self._started: list[subprocess.Popen[bytes]] = []
        self.set_runtime(mode, workers)

    def set_runtime(self, mode: str, workers: int = 1) -> None:
        runtime = {"mode": mode, "workers": workers, "checkpoint_every": CHECKPOINT_EVERY, "log_every": 5}
        runtime |= {"device": "cpu", "threads_per_worker": 1, "system_metrics": False}
        (self.root / "runtime.yaml").write_text(json.dumps(runtime))

    @staticmethod
    def prepare(root: Path, *changes: str, preset: str = "smoke", until: str | None = "encode_latents") -> Path:
        """Make a project and run the stages up to `until`; None runs none."""
        root.mkdir(parents=True, exist_ok=True)
        for name in CODE:  # copies: an edit meanwhile would be another stage
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
            copy(REPOSITORY / name, root / name)
        (root / "data/images").mkdir(parents=True)
        longer = [f"teacher.training.steps={STEPS}", "teacher.training.batch_size=32"]
        params.write(root, params.from_preset(root, preset, [*longer, *changes]), preset)
        lab = Lab(root)
        lab.finish(lab.start("dvc", "init", "--no-scm", "-q"))
        if until:
            lab.finish(lab.start("dvc", "repro", until))
        return root

    @classmethod
    def copy(cls, prepared: Path, root: Path, **runtime: int | str) -> Lab:
        shutil.copytree(prepared, root, symlinks=True)
        return cls(root, **runtime)  # type: ignore[arg-type]

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start `dvc ...`, `ayf ...` or `stage NAME` in the project, in a process group of its own."""
        dvc_lock.mend(self.root)  # as `make repro` does
        modules = {"dvc": "dvc", "ayf": "pipelines.commands.main", "stage": "pipelines"}
        words = ["-m", modules[command[0]]]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_", "AYF_"))}
        ours = {"AYF_RUNTIME": str(self.root / "runtime.yaml"), "OMP_NUM_THREADS": "1", "CI": "true"}
        ours |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(self.root)}
        output = (self.root / f"said-{len(self._started)}.txt").open("wb")  # no pipe: an orphan would hold it open
        process = subprocess.Popen(
            [sys.executable, *words, *command[1:]],
            cwd=self.root,
            env=kept | ours | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        output.close()
        self._started.append(process)
        return process

    def close(self) -> None:
        """Kill what a failed test may have left."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def finish(self, process: subprocess.Popen[bytes], seconds: float = 480) -> str:
        """Wait for its end, which must be a good one; what it said."""
        assert process.wait(timeout=seconds) == 0, self.said(process)
        return self.said(process)

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """All that a process wrote so far."""
        return (self.root / f"said-{self._started.index(process)}.txt").read_text()

    @property
    def training(self) -> Path:
        return next(iter(self.root.glob(f"runs/{STAGE}/*/training")), self.root / "none yet")

    def steps(self) -> list[int]:
        """Steps in the metrics file."""
        path = self.training / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record["step"] for record in records if "note" not in record]

    def checkpoints(self) -> list[Path]:
        return sorted(self.training.glob("checkpoints/step_????????"))

    def newest_step(self) -> int:
        found = self.checkpoints()
        return int(found[-1].name[5:]) if found else 0

    def wait_for_step(self, step: int, process: subprocess.Popen[bytes], seconds: float = 300) -> int:
        """Wait until this step was trained and a checkpoint stands; the last step noted."""
        self.wait(lambda: self.checkpoints() and max(self.steps(), default=0) >= step, f"step {step}", process, seconds)
        return self.steps()[-1]

    def wait(
        self, ready: Callable[[], object], what: str, process: subprocess.Popen[bytes], seconds: float = 300
    ) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None:
                raise AssertionError(f"ended with {process.returncode} before {what}: {self.said(process)}")
            assert time.monotonic() < deadline, f"no {what} within {seconds} s"
            time.sleep(0.02)

    def goes_on(self, process: subprocess.Popen[bytes], resumed: int) -> None:
        """Wait until a step after `resumed` is trained by an attempt that began after the strike."""
        inode = self._struck_inode
        path = self.training / "metrics.jsonl"
        self.wait(lambda: path.stat().st_ino != inode and self.steps()[-1:] > [resumed], "going on", process)

    def struck(self) -> None:
        """Remember what the metrics file was: a resumed training writes another."""
        self._struck_inode = (self.training / "metrics.jsonl").stat().st_ino

    def model(self) -> str:
        return teacher_of(self.root)

    def processes(self, words: str, below: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Descendants of a process whose command holds these words (Ray names its workers so)."""
        found = []
        for process in psutil.Process(below.pid).children(recursive=True):
            try:
                if words in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


def teacher_of(root: Path) -> str:
    """Fingerprint of a project's teacher."""
    return fingerprint(root / "models/teacher")
