"""The search space: for each setting, a range of numbers or a list of values, held to the setting's own type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ayf_core.errors import AyfError
from pipelines.settings import model as settings
from pipelines.settings.experiment import Config
from pipelines.settings.model import Setting

_RANGE_KEYS = {"low", "high", "log"}


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; log: equally many in each decade."""

    low: float
    high: float
    log: bool
    whole: bool

    def ends(self) -> tuple[Any, Any]:
        return self.low, self.high

    def contains(self, value: Any) -> bool:
        return self.low <= value <= self.high

    def at(self, share: float) -> float:
        """The number at a share in [0, 1] of the way from low to high."""
        if self.log:
            found = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + share * (self.high - self.low)
        return self.neat(found)

    def neat(self, value: float) -> float:
        """The number in the range with four digits: a person will read it in params.yaml."""
        rounded = round(value) if self.whole else float(f"{value:.4g}")
        return min(max(rounded, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of the listed values."""

    values: tuple[Any, ...]

    def ends(self) -> tuple[Any, ...]:
        return self.values

    def contains(self, value: Any) -> bool:
        return value in self.values

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1) of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


Dimension = Range | Choice
Point = dict[str, Any]


def read_space(entries: Mapping[str, Any], where: str) -> dict[str, Dimension]:
    """The checked search space of a sweep file.

    Args:
        entries: by dotted keys of params.yaml, `{low, high[, log]}` or a list of values.
        where: the file's name, for messages.

    Raises:
        AyfError: an unknown key, a value of the wrong type or out of the setting's range.
    """
    if not entries:
        raise AyfError(f"{where}: space is empty: name at least one setting of params.yaml")
    return {key: _dimension(_leaf(key, f"{where}: space"), entry, f"{where}: space") for key, entry in entries.items()}


def read_fixed(entries: Mapping[str, Any], where: str) -> Point:
    """The checked values that every trial has instead of those of params.yaml.

    Raises:
        AyfError: as `read_space`.
    """
    return {key: _value(_leaf(key, f"{where}: fixed"), value, f"{where}: fixed") for key, value in entries.items()}


def grid_points(space: Mapping[str, Dimension], where: str) -> list[Point]:
    """Every combination of the listed values, the first setting varying slowest.

    Raises:
        AyfError: a setting has a range.
    """
    for key, dimension in space.items():
        if isinstance(dimension, Range):
            raise AyfError(
                f"{where}: space: {key} is a range, which a grid cannot enumerate: list values, as in [1, 2]"
            )
    return [dict(zip(space, values, strict=True)) for values in product(*(d.ends() for d in space.values()))]


def extremes(space: Mapping[str, Dimension]) -> Iterator[Point]:
    """One setting at a time at each of its ends (or values): what has to be a valid experiment."""
    for key, dimension in space.items():
        for value in dimension.ends():
            yield {key: value}


def _leaf(key: str, where: str) -> Setting:
    leaf = settings.settings_of(Config).get(key)
    if leaf is None:
        raise AyfError(f"{where}: {settings.unknown_key(key, Config)}")
    return leaf


def _dimension(leaf: Setting, entry: Any, where: str) -> Dimension:
    if isinstance(entry, Mapping):
        return _range(leaf, entry, where)
    if isinstance(entry, Sequence) and not isinstance(entry, str) and entry:
        return Choice(tuple(_value(leaf, value, where) for value in entry))
    raise AyfError(f"{where}: {leaf.key}: write a range as {{low: ..., high: ...}} or a list of values, not {entry!r}")


def _range(leaf: Setting, entry: Mapping[str, Any], where: str) -> Range:
    unknown = set(entry) - _RANGE_KEYS
    if unknown or not {"low", "high"} <= set(entry):
        raise AyfError(
            f"{where}: {leaf.key}: a range has low, high and perhaps log: true; found {', '.join(map(str, entry))}"
        )
    if leaf.kind not in (int, float) or leaf.is_list:
        raise AyfError(f"{where}: {leaf.key} is {leaf.allowed()}: list the values to try, as in [a, b]")
    low, high, log = _value(leaf, entry["low"], where), _value(leaf, entry["high"], where), entry.get("log", False)
    if not isinstance(log, bool) or not low < high or (log and low <= 0):
        raise AyfError(
            f"{where}: {leaf.key}: needs low below high" + (" and, with log: true, low above 0" if log else "")
        )
    return Range(low, high, log, whole=leaf.kind is int)


def _value(leaf: Setting, value: Any, where: str) -> Any:
    """A value of the setting's type; whole numbers stand for numbers."""
    if leaf.is_list and isinstance(value, list):
        items = [_value(_item(leaf), item, where) for item in value]
        return items if leaf.accepts(items) else _refuse(leaf, value, where)
    if leaf.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right = (value is None and leaf.nullable) or (type(value) is leaf.kind and not leaf.is_list)
    return value if right and leaf.accepts(value) else _refuse(leaf, value, where)


def _item(leaf: Setting) -> Setting:
    return Setting(**{**leaf.__dict__, "is_list": False})


def _refuse(leaf: Setting, value: Any, where: str) -> Any:
    raise AyfError(f"{where}: {settings.out_of_range(leaf, value)}")
