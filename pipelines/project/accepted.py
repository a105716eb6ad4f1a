"""Changes of code that a person said are harmless: conf/accepted_code.yaml, kept in git so that every clone agrees.

An accepted change counts as the code before it: the stage `code` writes the digest that the module had when the
result was made. DVC then finds nothing changed, and an interrupted training finds its scratch folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ayf_core.errors import AyfError
from ayf_core.files import write_whole
from pipelines.settings.yaml_file import parse_yaml

ACCEPTED_FILE = "conf/accepted_code.yaml"
_HEADER = """\
# Changes of code that were said to change no result: `ayf code accept --why TEXT` writes them.
# For the stages named, the module in its form `now` counts as it was in the form `before` (null: not there).
"""


@dataclass(frozen=True)
class Accepted:
    """For these stages, `module` in the form `now` counts as `before`; None stands for a module that is not there."""

    module: str
    now: str | None
    before: str | None
    stages: tuple[str, ...]
    why: str
    when: str


def accepted_changes(root: Path) -> list[Accepted]:
    """What was accepted; nothing where there is no file.

    Raises:
        AyfError: the file is damaged.
    """
    path = root / ACCEPTED_FILE
    if not path.exists():
        return []
    try:
        entries = parse_yaml(path.read_text()) or []
        return [Accepted(**{**entry, "stages": tuple(entry["stages"])}) for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise AyfError(f"{path} cannot be read ({' '.join(str(error).split())}): restore it with git") from error


def as_accepted(modules: Mapping[str, str], stage: str, changes: Iterable[Accepted]) -> dict[str, str]:
    """The modules of a stage with each accepted change undone; of two for the same form, the later counts."""
    counted = dict(modules)
    for change in changes:
        if stage in change.stages and modules.get(change.module) == change.now:
            counted.pop(change.module, None)
            if change.before is not None:
                counted[change.module] = change.before
    return dict(sorted(counted.items()))


def accept(root: Path, changes: Iterable[Accepted]) -> None:
    """Add to what was accepted."""
    entries = []
    for change in [*accepted_changes(root), *changes]:
        entries.append({**vars(change), "stages": list(change.stages)})
    path = root / ACCEPTED_FILE
    path.parent.mkdir(exist_ok=True)
    write_whole(path, _HEADER + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=120))
