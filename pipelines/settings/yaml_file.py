"""Files of settings: read with the line of every key, changed in place so that a person's comments stay."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ayf_core.errors import AyfError
from ayf_core.files import no_collection
from pipelines.settings import tree
from pipelines.settings.words import literal

T = TypeVar("T")


def parse_yaml(text: str) -> Any:
    """The plain value of a YAML text. Raises ValueError, in one line, for what is none or is nested too deep."""
    try:
        with no_collection():
            return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("nested too deep") from None


class YamlFile:
    """A YAML file of settings.

    Raises:
        AyfError: the text is not YAML, a key stands twice, or it does not hold `key: value` lines.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        try:
            with no_collection():
                content = _yaml().load(text)
        except DuplicateKeyError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            key = str(error.problem).partition('"')[2].partition('"')[0]
            raise AyfError(f"{name}:{line}: {key} stands twice: delete one") from error
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f", line {mark.line + 1}" if mark else ""
            raise AyfError(
                f"{name}{line}: not valid YAML ({error.problem or error.context}): mend that line"
            ) from error
        except (YAMLError, RecursionError) as error:
            raise AyfError(f"{name}: not valid YAML ({' '.join(str(error).split())})") from error
        if content is not None and not isinstance(content, CommentedMap):
            raise AyfError(f"{name}, line 1: must hold `key: value` lines")
        self.content: CommentedMap = content if content is not None else CommentedMap()

    @property
    def values(self) -> dict[str, Any]:
        """The values, as plain nested dicts."""
        return _plain(self.content)

    def where(self, key: str) -> str:
        """`file:line` of a key, or the file alone where the key does not stand in it."""
        part: Any = self.content
        *groups, name = key.split(".")
        for group in groups:
            part = part.get(group) if isinstance(part, CommentedMap) else None
        if not isinstance(part, CommentedMap) or name not in part:
            return self.name
        return f"{self.name}:{part.lc.key(name)[0] + 1}"

    def located(self, line: str) -> str:
        """A complaint that begins with a setting's key, after the file and line that the key stands in."""
        words = line.split(" ")
        key = words[2].rstrip(":") if line.startswith("unknown setting ") else words[0].rstrip(":")
        return f"{self.where(key)}: {line}"

    def set(self, key: str, value: Any) -> None:
        """Change, or add at the end of its group, the value at a dotted key."""
        part = self.content
        *groups, name = key.split(".")
        for group in groups:
            if not isinstance(part.get(group), CommentedMap):
                part[group] = CommentedMap()
            part = part[group]
        part[name] = _yaml().load(f"- {literal(value)}")[0]  # in the spelling that both versions of YAML read alike

    def remove(self, key: str) -> None:
        """Take the line of a dotted key out."""
        *groups, name = key.split(".")
        part: Any = self.content
        for group in groups:
            part = part[group]
        del part[name]

    def text(self) -> str:
        """The file as it is now."""
        written = io.StringIO()
        _yaml().dump(self.content, written)
        return written.getvalue()


def _yaml() -> YAML:
    yaml = YAML()  # round trip: comments, order and quotes stay
    yaml.width = 10_000
    yaml.preserve_quotes = True
    yaml.representer.add_representer(
        type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _plain(value: Any) -> Any:
    """Python's own types in place of ruamel's, which remember how a number was written."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def parsed(text: str) -> Any:
    """The value of a line of YAML, as plain Python."""
    return _plain(YamlFile(f"value: {text}", repr(text)).content.get("value"))


def read_yaml(path: Path, remedy: str) -> YamlFile:
    """A YAML file of settings.

    Raises:
        AyfError: the file is missing (`remedy` says what to do), unreadable or not YAML.
    """
    try:
        return YamlFile(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError as error:
        raise AyfError(f"no {path.name} in {path.parent}: {remedy}") from error
    except UnicodeDecodeError as error:
        raise AyfError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise AyfError(f"cannot read {path} ({error.strerror}): check that it is a readable file") from error


def read_typed(path: Path, schema: type[T], remedy: str, free: tuple[str, ...] = ()) -> tuple[T, dict[str, Any]]:
    """A YAML file of settings as the dataclass `schema`, and its groups named in `free`, which are the caller's.

    Raises:
        AyfError: the file is missing or not YAML, or a setting is unknown or wrong.
    """
    file = read_yaml(path, remedy)
    values = file.values
    theirs = {name: values.pop(name) or {} for name in free if name in values}
    problems = tree.problems_of(schema, values)
    if problems:
        raise AyfError(file.located(problems[0]))
    return tree.build(schema, values), theirs
