"""Files of settings: read with the line of every key, so that what is wrong is named by file and line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ayf_core.errors import AyfError
from pipelines.settings.model import Setting, groups_of, literal, range_problems, settings_of, unknown_key

T = TypeVar("T")


class Document:
    """A YAML file of settings with the line of every key, read without interpreting the values.

    Raises:
        AyfError: the text is not YAML, or not a mapping, naming the file and the line.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.lines: dict[str, int] = {}
        self.repeated: list[str] = []
        self._kinds: dict[str, str] = {}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            what = getattr(error, "problem", None) or "not readable as text"
            raise AyfError(f"{name}{line}: not valid YAML ({what}); mend that line") from error
        if node is None:
            return
        if not isinstance(node, yaml.MappingNode):
            raise AyfError(f"{name}, line {node.start_mark.line + 1}: must hold `key: value` lines")
        self._visit(node, "")

    def _visit(self, mapping: yaml.MappingNode, prefix: str) -> None:
        for name, value in mapping.value:
            key = f"{prefix}{name.value}"
            if key in self.lines:
                self.repeated.append(key)
            self.lines[key] = name.start_mark.line + 1
            if isinstance(value, yaml.MappingNode):
                self._kinds[key] = "group"
                self._visit(value, f"{key}.")
            elif value.tag == "tag:yaml.org,2002:null":
                self._kinds[key] = "null"
            elif isinstance(value, yaml.ScalarNode) and "${" in value.value:
                self._kinds[key] = "reference"
            else:
                self._kinds[key] = "value"

    def where(self, key: str) -> str:
        """``file:line`` of a key, or the file alone where the key does not stand in it."""
        return f"{self.name}:{self.lines[key]}" if key in self.lines else self.name

    def shape_problems(self, schema: type, free: Sequence[str] = ()) -> list[str]:
        """Lines for unknown, repeated, missing and empty keys, and for references to other values.

        Of the groups named in `free` only repeated keys are looked for.
        """
        leaves, groups = settings_of(schema), groups_of(schema)
        problems = [f"{self.where(key)}: {key} stands twice; delete one" for key in self.repeated]
        unknown: list[str] = []
        for key, kind in self._kinds.items():
            if any(key == other or key.startswith(f"{other}.") for other in (*unknown, *free)):
                continue
            if key not in leaves and key not in groups:
                unknown.append(key)
                problems.append(f"{self.where(key)}: {unknown_key(key, schema)}")
            elif key in groups and kind != "group":
                problems.append(f"{self.where(key)}: {key} must be a group of settings ({self._inside(key, leaves)})")
            elif key in leaves and kind == "group":
                unknown.append(key)
                problems.append(f"{self.where(key)}: {key} must be a single value: {leaves[key].allowed()}")
            elif kind == "null" and not leaves[key].nullable:
                problems.append(f"{self.where(key)}: {key} has no value: give it {leaves[key].allowed()}")
            elif kind == "reference":
                problems.append(f"{self.where(key)}: {key} refers to another value with ${{...}}; write the value out")
        absent: list[str] = []
        for key, leaf in leaves.items():
            if key in self.lines or not leaf.required or self._reported_above(key, groups, absent):
                continue
            parent = next(
                (
                    key.rsplit(".", depth)[0]
                    for depth in range(key.count("."), 0, -1)
                    if key.rsplit(".", depth)[0] not in self.lines
                ),
                None,
            )
            if parent is not None:
                absent.append(parent)
                problems.append(f"{self.name}: the group {parent} is missing ({self._inside(parent, leaves)}); add it")
            else:
                problems.append(f"{self.name}: {key} is missing: add it, {leaf.allowed()}")
        return problems

    def _reported_above(self, key: str, groups: set[str], absent: list[str]) -> bool:
        # A missing or malformed group was already named: its members need no line each.
        return any(
            key.startswith(f"{group}.") and (group in absent or self._kinds.get(group, "group") != "group")
            for group in groups
        )

    @staticmethod
    def _inside(group: str, leaves: Mapping[str, Setting]) -> str:
        names = dict.fromkeys(key[len(group) + 1 :].split(".")[0] for key in leaves if key.startswith(f"{group}."))
        return ", ".join(names)


def read_document(path: Path, remedy: str) -> Document:
    """A YAML file's keys and lines.

    Raises:
        AyfError: the file is missing, unreadable or not YAML.
    """
    try:
        return Document(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError as error:
        raise AyfError(f"no {path.name} in {path.parent}: {remedy}") from error
    except UnicodeDecodeError as error:
        raise AyfError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise AyfError(f"cannot read {path} ({error.strerror}): check that it is a readable file") from error


def read_typed(path: Path, schema: type[T], remedy: str, free: Sequence[str] = ()) -> T:
    """A YAML file of settings as the dataclass `schema`; groups named in `free` are left to the caller.

    Raises:
        AyfError: the file is missing (`remedy` says what to do) or not YAML, or a setting is unknown or wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    document = read_document(path, remedy)
    problems = document.shape_problems(schema, free)
    if problems:
        raise AyfError(problems[0])
    loaded = typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))
    values = {key: value for key, value in loaded.items() if key not in free}
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(values)))
    except OmegaConfBaseException as error:
        raise AyfError(located(document, type_problem(error, schema))) from error
    problems = range_problems(dataclasses.asdict(typing.cast(Any, typed)), schema)
    if problems:
        raise AyfError(located(document, problems[0]))
    return typing.cast(T, typed)


def type_problem(error: BaseException, schema: type) -> str:
    """What OmegaConf could not convert, in our words; its error may be the cause of one of Hydra's."""
    cause: BaseException | None = error
    while cause is not None:
        key = getattr(cause, "full_key", None)
        leaf = settings_of(schema).get(key.split("[")[0]) if key else None
        if leaf is not None:
            held = "holds" if "[" in str(key) else "="
            value = literal(getattr(cause, "value", None))
            return f"{leaf.key} {held} {value}: must be {leaf.allowed()}; choose such a value"
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def located(document: Document, line: str) -> str:
    """A complaint that begins with a setting's key, after the file and line that the key stands in."""
    return f"{document.where(line.split(' ', 1)[0])}: {line}"
