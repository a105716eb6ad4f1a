"""What a setting is: a dataclass field with its meaning and its range, declared beside the code that uses it.

A component (a network, an objective, a data set, ...) is a dataclass. Its fields made by `setting`, `group` and
`chosen` are what a person sets; further fields are what the caller hands over when it is built. From the declarations
come the keys of an experiment's file, its range checks and its comments, so that nothing is written twice.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

_KEY = "ayf.setting"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value that a person sets: its type, its range, its meaning.

    Attributes:
        name: of the field.
        kind: type of the value, or of a list's items: int, float, bool or str.
        help: its meaning, in a few words.
        choices: the words that a text may be.
        room: the registry's room whose names a text may be.
        word: that may stand in place of a number.
        at_least, at_most, above, below: the range; of a list, of every item.
        repeats: whether a list may hold an item more than once.
        may_be_empty: whether a list, or a text, may be empty.
        default: for settings that cannot change a result; the others have none.
    """

    name: str
    kind: type
    help: str
    is_list: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()
    room: str | None = None
    word: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    repeats: bool = False
    may_be_empty: bool = False
    default: Any

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def words(self) -> tuple[str, ...]:
        """What a text may be; empty where it is free."""
        if self.room is None:
            return self.choices
        from ayf_core.registry import names

        return names(self.room)

    def allowed(self) -> str:
        """The allowed values in words: `a number, above 0 and at most 1`."""
        if self.words():
            text = "one of " + ", ".join(self.words())
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
            text = "a list" + ("" if self.may_be_empty else " of at least one") + f", each {text}"
            text += "" if self.repeats else ", none twice"
        text += f", or {self.word}" if self.word else ""
        return f"{text}, or null" if self.nullable else text

    def typed(self, value: Any) -> Any:
        """The value in the setting's own type: a whole number where a number is asked becomes a float.

        Raises:
            TypeError: it has another type.
        """
        if (value is None and self.nullable) or (self.word and value == self.word):
            return value
        if self.is_list:
            if not isinstance(value, list | tuple):
                raise TypeError(self.name)
            return [self._item(item) for item in value]
        return self._item(value)

    def accepts(self, value: Any) -> bool:
        """Whether a value of the right type lies in the range."""
        if value is None or (self.word and value == self.word):
            return value is not None or self.nullable
        if self.is_list:
            items = list(value)
            distinct = self.repeats or len(set(items)) == len(items)
            return (bool(items) or self.may_be_empty) and distinct and all(self._fits(item) for item in items)
        return self._fits(value)

    def _item(self, value: Any) -> Any:
        if self.kind is float and type(value) is int:
            return float(value)
        if type(value) is not self.kind:
            raise TypeError(self.name)
        return value

    def _fits(self, value: Any) -> bool:
        if self.words():
            return value in self.words()
        if self.kind is str:
            return bool(value) or self.may_be_empty
        if self.kind is bool:
            return True
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Group:
    """A group of settings: those of the dataclass `schema`."""

    name: str
    schema: type
    help: str
    optional: bool = False


@dataclass(frozen=True)
class Choice:
    """A group of settings that names a component of a room, under the key `by`, and holds the component's own settings.

    With `each`, the groups of the same level that are called like components of the room, listed under the keys `by`;
    `schema` are settings that each of them has besides the component's own.
    """

    name: str
    room: str
    help: str
    by: str | tuple[str, ...]
    each: bool = False
    schema: type | None = None


def setting(
    help: str,
    *,
    choices: Sequence[str] = (),
    room: str | None = None,
    word: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    repeats: bool = False,
    may_be_empty: bool = False,
    default: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field with its meaning and its range: see `Setting`."""
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "room": room,
        "word": word,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
        "repeats": repeats,
        "may_be_empty": may_be_empty,
    }
    return dataclasses.field(metadata={_KEY: ("setting", metadata)}, default=default, kw_only=True)


def group(help: str, default: Callable[[], Any] | None = None) -> Any:
    """A dataclass field that is itself a dataclass of settings; with a default it may be left out."""
    metadata = {_KEY: ("group", {"help": help, "optional": default is not None})}
    if default is None:
        return dataclasses.field(metadata=metadata, kw_only=True)
    return dataclasses.field(metadata=metadata, default_factory=default, kw_only=True)


def chosen(room: str, help: str, by: str = "kind") -> Any:
    """A dataclass field for a component of a room: a `Chosen`, named under the key `by`."""
    return dataclasses.field(metadata={_KEY: ("choice", {"room": room, "help": help, "by": by})}, kw_only=True)


def each(room: str, help: str, by: tuple[str, ...], schema: type) -> Any:
    """A dataclass field for several components of a room: a mapping of name to `Chosen`.

    Their groups stand beside the other settings, called like the components that the lists `by` name; each holds the
    component's own settings and those of `schema`.
    """
    metadata = {"room": room, "help": help, "by": by, "each": True, "schema": schema}
    return dataclasses.field(metadata={_KEY: ("choice", metadata)}, kw_only=True)


@cache
def settings_of(schema: type) -> Mapping[str, Setting | Group | Choice]:
    """What a person sets of a dataclass, by the field's name, in the order of declaration; of a function nothing."""
    found: dict[str, Setting | Group | Choice] = {}
    if not dataclasses.is_dataclass(schema):
        return found
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if _KEY not in field.metadata:
            continue
        what, metadata = field.metadata[_KEY]
        if what == "group":
            found[field.name] = Group(field.name, hints[field.name], **metadata)
        elif what == "choice":
            found[field.name] = Choice(field.name, **metadata)
        else:
            kind, nullable = _without_none(hints[field.name])
            is_list = typing.get_origin(kind) is list
            found[field.name] = Setting(
                name=field.name,
                kind=typing.get_args(kind)[0] if is_list else kind,
                is_list=is_list,
                nullable=nullable,
                default=field.default,
                **metadata,
            )
    return found


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0], len(kinds) < len(typing.get_args(hint))
    return hint, False
