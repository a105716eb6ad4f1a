"""Where a stage's code differs from the code of its last result, or of its interrupted training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.files import read_json, write_whole
from pipelines.execution.stage import Stage
from pipelines.project import dvc_lock
from pipelines.project.accepted import Accepted
from pipelines.project.code import Modules, as_text, code_file, differences, lists_code, stage_code
from pipelines.project.declarations import CODE_FOLDER, read_declarations
from pipelines.settings.runtime import RuntimeConfig

_NOTE = "code.json"
_COMPLETE = "complete.json"


@dataclass(frozen=True)
class CodeChange:
    """A stage whose code is not what it was.

    Attributes:
        before: the modules then; None where they are no longer known.
        now: the modules as they count now.
        interrupted: scratch of the training that was interrupted then; None where `dvc.lock` has the result.
    """

    stage: str
    before: Modules | None
    now: Modules
    interrupted: Path | None = None

    @property
    def modules(self) -> list[str]:
        """The modules that differ, in words."""
        return differences(self.before, self.now) if self.before is not None else ["no longer known which"]


def note_code(stage: Stage) -> None:
    """Write into a stage's scratch which code it runs with, beside what else it is known by."""
    if lists_code(stage.declaration):
        modules = json.loads(code_file(stage.root, stage.name).read_text())
        write_whole(stage.scratch / _NOTE, json.dumps({"inputs": _other_inputs(stage), "modules": modules}))


def code_changes(root: Path, stages: Iterable[str] | None = None) -> list[CodeChange]:
    """The stages whose code differs from that of their last result, or of their interrupted training.

    Raises:
        AyfError: the code cannot be read.
    """
    committed = dvc_lock.committed(root)
    found = []
    for stage, now in stage_code(root, stages).items():
        text = as_text(now).encode()
        md5 = _noted_md5(committed.get(stage, {}), stage)
        if md5 is not None and md5 != hashlib.md5(text, usedforsecurity=False).hexdigest():
            found.append(CodeChange(stage, _from_cache(root, md5), now))
        scratch = _interrupted(root, stage, now)
        if scratch is not None:
            found.append(CodeChange(stage, read_json(scratch / _NOTE)["modules"], now, scratch))
    return found


def accepting(root: Path, changes: Iterable[CodeChange], why: str, when: str) -> list[Accepted]:
    """What is to be written down so that the code of each change counts as it was before.

    Raises:
        AyfError: it is no longer known what the code was before.
    """
    stages: dict[tuple[str, str | None, str | None], list[str]] = {}
    for change in changes:
        if change.before is None:
            raise AyfError(
                f"{change.stage}: which modules its result was made with is no longer in DVC's cache: "
                "`dvc fetch code` at the commit of that result brings it back"
            )
        raw = stage_code(root, [change.stage], accepted=False)[change.stage]
        for module in change.before.keys() | change.now.keys():
            if change.before.get(module) != change.now.get(module):
                stages.setdefault((module, raw.get(module), change.before.get(module)), []).append(change.stage)
    return [
        Accepted(module, now, before, tuple(sorted(names)), why, when)
        for (module, now, before), names in sorted(stages.items(), key=lambda entry: entry[0][0])
    ]


def _noted_md5(stage: Mapping[str, Any], name: str) -> str | None:
    path = f"{CODE_FOLDER}/{name}.json"
    return next((dep.get("md5") for dep in stage.get("deps", []) if dep.get("path") == path), None)


def _from_cache(root: Path, md5: str) -> Modules | None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return read_json(Path(repo.cache.local.oid_to_path(md5)))
    except (OSError, ValueError, DvcException):
        return None


def _interrupted(root: Path, name: str, now: Modules) -> Path | None:
    """Scratch of the newest unfinished attempt at a stage with the present settings and inputs, and with other code."""
    notes = sorted((root / "runs" / name).glob(f"*/{_NOTE}"), key=lambda note: note.stat().st_mtime, reverse=True)
    unfinished = [note for note in notes if not (note.parent / _COMPLETE).exists()]
    if not unfinished:
        return None
    declaration = read_declarations(root)[name]
    if not all((root / dep).exists() for dep in declaration.deps):
        return None
    present = _other_inputs(Stage(root, declaration, RuntimeConfig()))
    for note in unfinished:
        noted = read_json(note)
        if noted["inputs"] == present and noted["modules"] != now:
            return note.parent
    return None


def _other_inputs(stage: Stage) -> str:
    """A hash of everything that decides the result, the code apart."""
    own = f"{CODE_FOLDER}/{stage.name}.json"
    content = {"params": stage.params, "deps": {dep: d for dep, d in stage.fingerprints.items() if dep != own}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
