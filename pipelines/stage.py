"""Runs one stage of dvc.yaml: `python -m pipelines STAGE`.

The key of a stage's scratch folder is a hash of the settings it declares and of the contents of what it reads: an
interrupted stage finds itself again there, a changed setting never continues an old run. Only finished outputs are
published to the declared paths.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ayf_core.errors import AyfError, Preempted
from ayf_core.files import found_below, write_whole
from ayf_core.training.context import read_notes
from pipelines import dvc_lock
from pipelines.cluster.rendezvous import told_to_job
from pipelines.declarations import (
    Declaration,
    check_deps,
    declared_params,
    fingerprint,
    read_declarations,
    read_params,
)
from pipelines.notes import stage_name, stage_note
from pipelines.stopping import STOPPED, heed_stop_file, is_stopping, on_sigterm

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.execution import TrainFunction
    from pipelines.runtime import RuntimeConfig
    from pipelines.tracking import StageRun
    from pipelines.training import Watch

Body = Callable[[Any, "Stage"], None]
Launch = Callable[..., dict]

INTERRUPTED = 130
STOPPING_SECONDS = 20.0
"""How long a stage waits for the process before it, which was asked to stop, to take its checkpoint and end."""
ENDING_SECONDS = 3.0
"""How long for any other: its dvc may have been killed a moment ago."""
_COMPLETE = "complete.json"
_PUBLISHED = "published"


# -------------------------------------------------------------------------------------- what a stage is given


class Stage:
    """What a stage's `run(config, stage)` works with: inputs, scratch, outputs, its MLflow run.

    Args:
        root: the project.
        settings: what stands for params.yaml, as nested mappings; None reads it.
        instead: places of inputs that are not the project's own, by their declared paths (a sweep's trial reads what
            an earlier stage of its chain made).
        runs: where scratch folders lie; None is the project's `runs/`.

    Attributes:
        run: where its story is written.
        launch: runs a training function, as `pipelines.execution.run_training` does.
        watch: follows the training of a generator, if somebody wants to.
    """

    def __init__(
        self,
        root: Path,
        declaration: Declaration,
        runtime: RuntimeConfig,
        *,
        settings: Mapping[str, Any] | None = None,
        instead: Mapping[str, Path] | None = None,
        runs: Path | None = None,
    ) -> None:
        self.root = root
        self.declaration = declaration
        self.name = declaration.name
        self.item = declaration.item
        self.runtime = runtime
        self.inputs = {dep: root / dep for dep in declaration.deps} | {
            dep: place for dep, place in (instead or {}).items() if dep in declaration.deps
        }
        self.params = declared_params(read_params(root) if settings is None else settings, declaration)
        self.fingerprints = {dep: fingerprint(path) for dep, path in self.inputs.items()}
        self.key = self._key()
        self.scratch = (runs or root / "runs") / self.name / self.key[:16]
        self.run: StageRun
        self.launch: Launch | None = None
        self.watch: Watch | None = None

    def input(self, path: str) -> Path:
        """A declared dep's place. Raises AyfError for an undeclared one: DVC would not notice its changes."""
        if path not in self.inputs:
            raise AyfError(f"{self.name} reads {path}, which dvc.yaml does not list among its deps: add it there")
        return self.inputs[path]

    def output(self, path: str) -> Path:
        """Where to write a declared output: a place in scratch, published once the stage has finished."""
        if path not in self.declaration.outputs:
            raise AyfError(f"{self.name} writes {path}, which dvc.yaml does not list among its outs: add it there")
        place = self.made(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def made(self, path: str) -> Path:
        """Where a finished output lies in scratch."""
        return self.scratch / "outputs" / path

    def train(self, train: TrainFunction, config: dict, *, name: str | None = None) -> dict:
        """Train in `scratch/training[/name]` on the runtime's workers, metrics to MLflow; returns its result.

        A training that already finished is not repeated: its result is read again. Its artefact is in
        `final/`.
        """
        from pipelines.execution import run_training

        launch = self.launch or run_training
        folder = self.training_folder(name)
        result = folder / "result.json"
        if result.exists():
            return json.loads(result.read_text())
        returned = launch(
            train,
            config,
            folder=folder,
            name=f"{self.name} {name}" if name else self.name,
            runtime=self.runtime,
            on_log=self.run.offer_metrics,
        )
        notes = read_notes(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
        if notes:
            self.run.set_tags({"ayf.note": "; ".join(notes)})
        write_whole(result, json.dumps(returned))
        return returned

    def keep(self, path: str) -> Path:
        """Take what the training wrote to `final/` as the declared output `path`; training keeps its own.

        A stage interrupted after its training thus finds the artefact again. Nobody changes either, so they may share
        their bytes.
        """
        place = self.output(path)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.training_folder() / "final", place, copy_function=_link_or_copy)
        return place

    def training_folder(self, name: str | None = None) -> Path:
        """Where `train` keeps a training; the finished artefact is `training_folder() / "final"`."""
        return self.scratch / "training" / name if name else self.scratch / "training"

    def digest(self, path: str) -> str:
        """DVC's MD5 of an input from dvc.lock, or the start of its fingerprint where DVC has none."""
        for stage in dvc_lock.committed(self.root).values():
            for out in stage.get("outs", []):
                if out.get("path") == path and "md5" in out:
                    return out["md5"]
        return self.fingerprints.get(path, "unknown")[:32]

    def _key(self) -> str:
        """A hash of everything that decides the result; run ids, times and hosts are no part of it."""
        content = {"stage": self.name, "params": self.params, "deps": self.fingerprints}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- running it


def run_stage(
    root: Path,
    name: str,
    *,
    config: Config | Any = None,
    runtime: RuntimeConfig | None = None,
    body: Body | None = None,
) -> Stage:
    """Run a stage of `root`'s dvc.yaml from its checks to its published outputs.

    Args:
        config: the checked settings; None reads params.yaml.
        runtime: where it runs; None reads conf/runtime.
        body: what the stage does; None takes `run` of `pipelines.stages.<stage>`.

    Raises:
        AyfError: anything a person can mend, before work is wasted where it can be known before.
    """
    root = root.absolute()
    if config is None or runtime is None:
        from pipelines.config import load_config
        from pipelines.runtime import load_runtime

        config = config if config is not None else load_config(root)
        runtime = runtime or load_runtime(root)
    declared = read_declarations(root)
    if name not in declared:
        raise AyfError(f"dvc.yaml has no stage {name}; it has {', '.join(declared)}")
    check_deps(root, declared[name], declared)
    body = body or body_of(declared[name].base)
    with only_writer(root / "runs" / name, name):
        stage = Stage(root, declared[name], runtime)
        if _asked_again(stage):
            _remove(stage.scratch)
        stage.scratch.mkdir(parents=True, exist_ok=True)
        stage.run = _open(stage)
        status = "FAILED"
        try:
            outputs = outcome(stage, config, body)
            stage.run.set_tags(_output_tags(outputs))
            stage.run.set_note(stage_note(stage, stage.run))
            _publish(stage)
            (stage.scratch / _PUBLISHED).write_text(_lock_as_written(stage.root))
            _tidy(stage)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit, Preempted):
            status = "KILLED"
            raise
        finally:
            stage.run.finish(status)
    return stage


def body_of(base: str) -> Body:
    """`run` of `pipelines.stages.<base>`."""
    module = f"pipelines.stages.{base}"
    try:
        return importlib.import_module(module).run
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AyfError(f"the stage {base} of dvc.yaml has no code: there is no {module}") from error


def _open(stage: Stage) -> StageRun:
    from pipelines.tags import KEY_TAG
    from pipelines.tracking import open_run

    # In a temporary copy of the project (dvc exp run --temp), DVC_ROOT names the lasting one.
    store = Path(os.environ.get("DVC_ROOT") or stage.root)
    params_hash = hashlib.sha256(json.dumps(stage.params, sort_keys=True).encode()).hexdigest()
    run = open_run(
        stage.name,
        run_name=stage_name(stage),
        root=store,
        scratch=stage.scratch,
        params=stage.params,
        tags={KEY_TAG: stage.key, "ayf.params_hash": params_hash[:16]},
        runtime=stage.runtime,
    )
    upstream = {dep: run.maker_of(dep, digest) for dep, digest in stage.fingerprints.items()}
    tags = {f"ayf.upstream.{dep}": run_id for dep, run_id in upstream.items() if run_id}
    if tags:
        run.set_tags(tags)
    run.set_note(stage_note(stage, run))
    return run


def outcome(stage: Stage, config: Any, body: Body) -> dict[str, str]:
    """Fingerprints of the stage's outputs, which lie in its scratch: found there finished, or computed now."""
    return _finished_outputs(stage) or _compute(stage, config, body)


def _compute(stage: Stage, config: Any, body: Body) -> dict[str, str]:
    shutil.rmtree(stage.scratch / "outputs", ignore_errors=True)  # what an interrupted attempt left
    body(config, stage)
    missing = [out for out in stage.declaration.outputs if not stage.made(out).exists()]
    if missing:
        raise AyfError(f"{stage.name} finished without writing {missing[0]}, which dvc.yaml declares")
    outputs = {out: fingerprint(stage.made(out)) for out in stage.declaration.outputs}
    write_whole(stage.scratch / _COMPLETE, json.dumps(outputs))
    return outputs


def _finished_outputs(stage: Stage) -> dict[str, str] | None:
    """Fingerprints of outputs that an earlier attempt finished; None if there are none, or damaged."""
    marker = stage.scratch / _COMPLETE
    if not marker.exists():
        return None
    known = json.loads(marker.read_text())
    places = {out: stage.made(out) for out in stage.declaration.outputs}
    intact = known.keys() == places.keys() and all(
        place.exists() and fingerprint(place) == known[out] for out, place in places.items()
    )
    if not intact:
        marker.unlink()
        shutil.rmtree(stage.scratch / "training", ignore_errors=True)  # its checkpoints are gone already
    return known if intact else None


def _asked_again(stage: Stage) -> bool:
    """Whether DVC has committed this very result before, and yet runs the stage: `dvc repro --force`.

    A stage killed after its work but before DVC's commit is not: that one publishes what it has. What counts is that
    dvc.lock was written since, not when: clocks jump.
    """
    marker, lock = stage.scratch / _PUBLISHED, stage.root / "dvc.lock"
    if not (marker.exists() and lock.exists()) or marker.read_text() == _lock_as_written(stage.root):
        return False
    return stage.name in dvc_lock.committed(stage.root)


def _lock_as_written(root: Path) -> str:
    """What tells one writing of dvc.lock from the next, even of the same content."""
    try:
        status = (root / "dvc.lock").stat()
    except FileNotFoundError:
        return "none"
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def _output_tags(outputs: Mapping[str, str]) -> dict[str, str]:
    from pipelines.tags import OUTPUT_TAG

    return {f"{OUTPUT_TAG}{out}": digest for out, digest in outputs.items()}


def _publish(stage: Stage) -> None:
    """Copy the outputs beside their declared paths, then rename: a kill never leaves half of one there.

    Copies, not links: DVC may turn a published file into a link of its cache, and scratch must not share it.
    """
    for out in stage.declaration.outputs:
        source, target = stage.made(out), stage.root / out
        beside, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
        target.parent.mkdir(parents=True, exist_ok=True)
        for left_over in (beside, old):
            _remove(left_over)
        if source.is_dir():
            shutil.copytree(source, beside, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, beside)
        if target.exists() or target.is_symlink():
            os.rename(target, old)
        os.rename(beside, target)
        _remove(old)


def _tidy(stage: Stage) -> None:
    """Remove checkpoints and finished work of other settings (DVC's run-cache has it); unfinished stays."""
    for checkpoints in found_below(stage.scratch / "training", "checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
    for other in stage.scratch.parent.iterdir():
        if other != stage.scratch and (other / _COMPLETE).exists():
            _remove(other)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no links
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def only_writer(folder: Path, name: str) -> Iterator[IO[str]]:
    """Hold the lock of a folder that one process writes; the system frees it however the process ends.

    Raises:
        AyfError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            free = _locked_within(file, ENDING_SECONDS)
            if not free and not (is_stopping(folder) and _locked_within(file, STOPPING_SECONDS)):
                raise AyfError(f"{name} is being run already (process {holder}): wait for it or end it") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file


def _locked_within(file: IO[str], seconds: float) -> bool:
    """Whether a process that is about to end let go of the lock in time."""
    patience = time.monotonic() + seconds
    while time.monotonic() < patience:
        time.sleep(0.1)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        return True
    return False


# ------------------------------------------------------------------------------------------------ the process


def main(arguments: list[str]) -> int:
    """`python -m pipelines STAGE`: run a stage of the project around the working directory."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m pipelines STAGE     (a stage of dvc.yaml, such as distill@emd)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, on_sigterm)
    heed_stop_file()
    try:
        root = _project_root(Path.cwd())
        _end_with_parent(root)
        with told_to_job():
            run_stage(root, arguments[0])
    except Preempted as stop:
        print(f"{arguments[0]}: {stop}", file=sys.stderr)
        return STOPPED
    except AyfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: run {arguments[0]} again and it goes on from its last checkpoint", file=sys.stderr)
        return INTERRUPTED
    return 0


def _project_root(start: Path) -> Path:
    return next((folder for folder in (start, *start.parents) if (folder / "dvc.yaml").exists()), start)


def _end_with_parent(root: Path) -> None:
    """End this stage when dvc is killed: an orphan would go on writing beside the rerun.

    Raises:
        AyfError: dvc was killed while this process started.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if "DVC_STAGE" not in os.environ:
        return
    import psutil

    # A shell between dvc and this process outlives dvc, so dvc itself is watched as well. It has the outputs locked.
    writing = dvc_lock.writers(root)
    try:
        above = [process for process in psutil.Process().parents() if process.pid in writing]
    except psutil.NoSuchProcess:  # one of them, in this instant
        above = []
    if writing and not above:
        raise AyfError(f"the dvc that started {os.environ['DVC_STAGE']} is gone: `dvc repro` goes on from here")
    if above:
        threading.Thread(target=_watch, args=(above,), daemon=True, name="watch-dvc").start()


def _watch(processes: Iterable[Any]) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        while all(process.is_running() and process.status() != "zombie" for process in processes):
            time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
