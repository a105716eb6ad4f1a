"""Accepts changes of code as harmless: written down for DVC and every clone, noted with the runs in MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from pipelines.execution.code_changes import CodeChange, accepting, code_changes
from pipelines.project.accepted import ACCEPTED_FILE, accept
from pipelines.project.code import lists_code, write_code
from pipelines.project.declarations import fingerprint, read_declarations


def accept_changes(root: Path, stages: Sequence[str], why: str) -> Iterator[str]:
    """Accept the present changes of code of these stages (none: of all), and say so line by line.

    Of a stage with a finished result and an interrupted training of later code, the training counts.

    Raises:
        AyfError: no such stage, or nothing has changed.
    """
    declared = read_declarations(root)
    for name in stages:
        if name not in declared or not lists_code(declared[name]):
            known = ", ".join(stage.name for stage in declared.values() if lists_code(stage))
            raise AyfError(f"no stage {name} with code of its own: there are {known}")
    changes = {change.stage: change for change in code_changes(root, stages or None)}  # an interrupted one comes later
    if not changes:
        raise AyfError("no code has changed since the results were made: there is nothing to accept")
    when = date.today().isoformat()
    accept(root, accepting(root, changes.values(), why, when))
    write_code(root)
    for change in changes.values():
        words = f"{', '.join(change.modules)} changed and counts as before: {why} ({when})"
        kept = "its interrupted training goes on" if change.interrupted else "its result is kept"
        yield f"{change.stage}: {kept}: {', '.join(change.modules)}"
        yield from _noted_in_mlflow(root, change, words)
    yield f"Written to {ACCEPTED_FILE}: commit it. Next: dvc repro"


def _noted_in_mlflow(root: Path, change: CodeChange, words: str) -> Iterator[str]:
    """Note it with the run; says so where that fails, for the claim itself stands in the file."""
    from pipelines.settings.runtime import load_runtime
    from pipelines.tracking.lineage import find_run_by_output, note_accepted
    from pipelines.tracking.store import tracking_uri

    try:
        uri = tracking_uri(root, load_runtime(root))
        if change.interrupted is not None:
            run: str | None = (change.interrupted / "mlflow_run_id").read_text().strip()
        else:
            out = read_declarations(root)[change.stage].outputs[0]
            run = find_run_by_output(out, fingerprint(root / out), uri) if (root / out).exists() else None
        if run is not None:
            note_accepted(run, words, uri)
    except Exception as error:
        yield f"{change.stage}: MLflow has no note of it ({first_line(error)})"
