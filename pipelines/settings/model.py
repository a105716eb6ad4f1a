"""What a setting is: the tree of typed, bounded settings that a configuration dataclass describes.

A dataclass declares its fields with :func:`setting`; from that come the dotted keys, the range checks, the
"did you mean" of a misspelt key and the comments of ``params.yaml``. Nothing here knows this project's own.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from ayf_core.errors import AyfError


def setting(
    help: str,
    *,
    choices: Sequence[str] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    repeats: bool = False,
    default: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field with its meaning and its range; for a list, the range holds for every item.

    ``repeats`` lets a list hold an item more than once.

    ``default`` is for settings that cannot change a result (the runtime's); science settings have none.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
        "repeats": repeats,
    }
    return dataclasses.field(metadata=metadata, default=default, kw_only=True)


@dataclass(frozen=True)
class Setting:
    """One leaf of the tree: ``key`` is dotted, ``kind`` the type of the value or of a list's items."""

    key: str
    kind: type
    is_list: bool
    nullable: bool
    required: bool
    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    repeats: bool = False

    def allowed(self) -> str:
        """The allowed values in words: ``a number, above 0 and at most 1``."""
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        else:
            text = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[self.kind]
            limits = [
                f"{words} {limit if isinstance(limit, int) else format(limit, 'g')}"
                for words, limit in (
                    ("at least", self.at_least),
                    ("above", self.above),
                    ("at most", self.at_most),
                    ("below", self.below),
                )
                if limit is not None
            ]
            text = " ".join([text, " and ".join(limits)]).strip()
        if self.is_list:
            text = f"a list of at least one, each {text}" + ("" if self.repeats else ", none twice")
        return f"{text}, or null" if self.nullable else text

    def accepts(self, value: Any) -> bool:
        """Whether a value of the right type lies in the range."""
        if value is None:
            return self.nullable
        if self.is_list:
            items = list(value)
            distinct = self.repeats or len(set(items)) == len(items)
            return bool(items) and distinct and all(self._item_fits(item) for item in items)
        return self._item_fits(value)

    def _item_fits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind is str:
            return bool(value)
        if self.kind is bool:
            return True
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


@cache
def settings_of(schema: type) -> Mapping[str, Setting]:
    """Every leaf of a configuration dataclass by its dotted key, in the order of declaration."""
    found: dict[str, Setting] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            for key, leaf in settings_of(typing.cast(type, hint)).items():
                found[f"{field.name}.{key}"] = dataclasses.replace(leaf, key=f"{field.name}.{key}")
            continue
        kind, nullable = _without_none(hint)
        is_list = typing.get_origin(kind) is list
        found[field.name] = Setting(
            key=field.name,
            kind=typing.get_args(kind)[0] if is_list else kind,
            is_list=is_list,
            nullable=nullable,
            required=field.default is dataclasses.MISSING,
            **field.metadata,
        )
    return found


def groups_of(schema: type) -> set[str]:
    """The dotted keys that hold other settings: ``distill``, ``distill.emd``, ..."""
    return {key.rsplit(".", depth)[0] for key in settings_of(schema) for depth in range(1, key.count(".") + 1)}


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0], len(kinds) < len(typing.get_args(hint))
    return hint, False


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that the given one most likely meant, or None where nothing is near.

    A dotted key is compared whole and, more leniently, by its last part within the same group.
    """
    known = list(known)
    group, _, name = word.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == group}
    by_name = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    if by_name:
        return siblings[by_name[0]]
    anywhere = [key for key in known if key.rpartition(".")[2] == name] if name else []
    whole = difflib.get_close_matches(word, anywhere or known, n=1, cutoff=0.0 if anywhere else 0.5)
    return whole[0] if whole else None


def unknown_key(key: str, schema: type) -> str:
    """The line that names an unknown key and the nearest valid one."""
    guess = nearest(key, [*settings_of(schema), *groups_of(schema)])
    remedy = f"did you mean {guess}?" if guess else "see the keys in params.yaml"
    return f"unknown setting {key}: {remedy}"


def out_of_range(leaf: Setting, value: Any) -> str:
    """The line that says what a setting holds, what it may hold and what to do."""
    guess = nearest(value, leaf.choices) if leaf.choices and isinstance(value, str) else None
    hint = f" (did you mean {guess}?)" if guess else ""
    return f"{leaf.key} = {literal(value)}: must be {leaf.allowed()}{hint}; choose such a value"


def range_problems(values: Mapping[str, Any], schema: type) -> list[str]:
    """A line for each leaf of ``values`` (plain nested mappings, types already right) outside its range."""
    lines = []
    for key, leaf in settings_of(schema).items():
        value = subtree(values, key)
        if not leaf.accepts(value):
            lines.append(out_of_range(leaf, value))
    return lines


def subtree(values: Mapping[str, Any], key: str) -> Any:
    """The part of nested mappings at a dotted key.

    Raises:
        AyfError: there is no such key; names it and the nearest one beside it.
    """
    part: Any = values
    passed: list[str] = []
    for name in key.split("."):
        if not isinstance(part, Mapping) or name not in part:
            beside = [".".join([*passed, str(other)]) for other in part] if isinstance(part, Mapping) else []
            guess = nearest(".".join([*passed, name]), beside)
            raise AyfError(f"no setting {key}" + (f": did you mean {guess}?" if guess else ""))
        part = part[name]
        passed.append(name)
    return part


def number(value: float) -> str:
    """A number as YAML 1.1 and 1.2 both read it back, exactly: 1e-05 would be text to a YAML 1.1 reader."""
    if isinstance(value, int):
        return str(value)
    if math.isnan(value) or math.isinf(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    if value != 0 and not 1e-3 <= abs(value) < 1e15:
        digits = repr(value) if "e" in repr(value) else _scientific(value)
        mantissa, exponent = digits.split("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}"
    return repr(value)


def _scientific(value: float) -> str:
    # The fewest digits that still give the same float.
    return next(text for text in (f"{value:.{digits}e}" for digits in range(1, 18)) if float(text) == value)


def literal(value: Any) -> str:
    """A leaf's value as one line of YAML; Hydra's command line reads the same text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    if not isinstance(value, str):
        return repr(value)
    try:
        plain = yaml.safe_load(f"[{value}]") == [value] and _plain(value)
    except yaml.YAMLError:
        plain = False
    return value if plain else "'" + value.replace("'", "''") + "'"


def _plain(text: str) -> bool:
    return bool(text) and all(character.isalnum() or character in "_-./" for character in text)
