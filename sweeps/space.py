"""The search space: for each setting, a range of numbers or a list of values, held to the setting's own type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.settings import Setting
from pipelines.settings.tree import Keys
from pipelines.settings.words import out_of_range

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


def read_space(entries: Mapping[str, Any], keys: Keys, where: str) -> dict[str, Dimension]:
    """The checked search space of a sweep file.

    Args:
        entries: by dotted keys of params.yaml, `{low, high[, log]}` or a list of values.
        keys: what there is to set in the present params.yaml.
        where: the file's name, for messages.

    Raises:
        AyfError: an unknown key, a value of the wrong type or out of the setting's range.
    """
    if not entries:
        raise AyfError(f"{where}: space is empty: name at least one setting of params.yaml")
    where = f"{where}: space"
    return {key: _dimension(key, _setting(key, keys, where), entry, where) for key, entry in entries.items()}


def read_fixed(entries: Mapping[str, Any], keys: Keys, where: str) -> Point:
    """The checked values that every trial has instead of those of params.yaml.

    Raises:
        AyfError: as `read_space`.
    """
    where = f"{where}: fixed"
    return {key: _value(key, _setting(key, keys, where), value, where) for key, value in entries.items()}


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


def _setting(key: str, keys: Keys, where: str) -> Setting:
    if key not in keys.settings:
        raise AyfError(f"{where}: {keys.unknown(key)}")
    return keys.settings[key]


def _dimension(key: str, setting: Setting, entry: Any, where: str) -> Dimension:
    if isinstance(entry, Mapping):
        return _range(key, setting, entry, where)
    if isinstance(entry, Sequence) and not isinstance(entry, str) and entry:
        return Choice(tuple(_value(key, setting, value, where) for value in entry))
    raise AyfError(f"{where}: {key}: write a range as {{low: ..., high: ...}} or a list of values, not {entry!r}")


def _range(key: str, setting: Setting, entry: Mapping[str, Any], where: str) -> Range:
    unknown = set(entry) - _RANGE_KEYS
    if unknown or not {"low", "high"} <= set(entry):
        found = ", ".join(map(str, entry))
        raise AyfError(f"{where}: {key}: a range has low, high and perhaps log: true; found {found}")
    if setting.kind not in (int, float) or setting.is_list:
        raise AyfError(f"{where}: {key} is {setting.allowed()}: list the values to try, as in [a, b]")
    low, high = (_value(key, setting, entry[end], where) for end in ("low", "high"))
    log = entry.get("log", False)
    if not isinstance(log, bool) or not low < high or (log and low <= 0):
        raise AyfError(f"{where}: {key}: needs low below high" + (" and, with log: true, low above 0" if log else ""))
    return Range(low, high, log, whole=setting.kind is int)


def _value(key: str, setting: Setting, value: Any, where: str) -> Any:
    """The value in the setting's type and range."""
    try:
        typed = setting.typed(value)
    except TypeError:
        raise AyfError(f"{where}: {out_of_range(key, setting, value)}") from None
    if not setting.accepts(typed):
        raise AyfError(f"{where}: {out_of_range(key, setting, value)}")
    return typed
