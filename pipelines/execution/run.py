"""Runs one stage of dvc.yaml, from its checks to its published outputs. Only finished outputs are published."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayf_core.errors import AyfError, Preempted
from ayf_core.files import found_below, write_whole
from pipelines.execution.code_changes import note_code
from pipelines.execution.locks import only_writer
from pipelines.execution.stage import Stage
from pipelines.project import dvc_lock
from pipelines.project.code import check_code
from pipelines.project.declarations import check_deps, fingerprint, read_declarations
from pipelines.tracking.notes import stage_name, stage_note

if TYPE_CHECKING:
    from pipelines.settings.experiment import Config
    from pipelines.settings.runtime import RuntimeConfig
    from pipelines.tracking.runs import StageRun

Body = Callable[[Any, Stage], None]

_COMPLETE = "complete.json"
_PUBLISHED = "published"


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
        from pipelines.settings.reading import load_config
        from pipelines.settings.runtime import load_runtime

        config = config if config is not None else load_config(root)
        runtime = runtime or load_runtime(root)
    declared = read_declarations(root)
    if name not in declared:
        raise AyfError(f"dvc.yaml has no stage {name}; it has {', '.join(declared)}")
    check_deps(root, declared[name], declared)
    check_code(root, declared[name])
    body = body or body_of(declared[name].base)
    with only_writer(root / "runs" / name, name):
        stage = Stage(root, declared[name], runtime)
        # By name: planning builds on the stages, not the other way round.
        stage.forecast = lambda: importlib.import_module("pipelines.planning.fit").forecast(config, stage)
        if _asked_again(stage):
            _remove(stage.scratch)
        stage.scratch.mkdir(parents=True, exist_ok=True)
        note_code(stage)
        stage.run = _open(stage)
        status = "FAILED"
        try:
            outputs = outcome(stage, config, body)
            stage.run.set_tags(_output_tags(outputs))
            stage.run.set_note(stage_note(stage.declaration, stage.run))
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
    from pipelines.tracking.runs import open_run
    from pipelines.tracking.tags import KEY_TAG, UPSTREAM_TAG

    # In a temporary copy of the project (dvc exp run --temp), DVC_ROOT names the lasting one.
    store = Path(os.environ.get("DVC_ROOT") or stage.root)
    params_hash = hashlib.sha256(json.dumps(stage.params, sort_keys=True).encode()).hexdigest()
    run = open_run(
        stage.name,
        run_name=stage_name(stage.declaration, stage.params, stage.root),
        root=store,
        scratch=stage.scratch,
        params=stage.params,
        tags={KEY_TAG: stage.key, "ayf.params_hash": params_hash[:16]},
        runtime=stage.runtime,
    )
    upstream = {dep: run.maker_of(dep, digest) for dep, digest in stage.fingerprints.items()}
    tags = {f"{UPSTREAM_TAG}{dep}": run_id for dep, run_id in upstream.items() if run_id}
    if tags:
        run.set_tags(tags)
    run.set_note(stage_note(stage.declaration, run))
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
    from pipelines.tracking.tags import OUTPUT_TAG

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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
