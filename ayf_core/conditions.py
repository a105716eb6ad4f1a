"""What samples are conditioned on: named tensors [B, ...] such as class labels, and what 'nothing given' is for each.

A `Condition` holds the tensors of one batch. A `ConditionSpec` says what each name stands for: it is part of a
network's spec, so whoever builds, trains or samples the network knows the null of each entry without knowing its kind.
A new kind (text embeddings with a stored null, masks) is a class beside `ClassLabels`; objectives and samplers do not
change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ayf_core.errors import AyfError
from ayf_core.registry import find, register


class Condition(Mapping[str, Tensor]):
    """Named tensors [B, ...], one row a sample; no entries at all for unconditional data. Never changed in place.

    Two conditions are equal only if they are the same object: tensors have no single truth value.

    Raises:
        AyfError: the entries differ in their number of rows.

    Example:
        >>> condition = Condition(labels=torch.tensor([3, 7, 7]))
        >>> condition.rows(slice(1, 3))["labels"]
        tensor([7, 7])
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, Tensor] | None = None, /, **named: Tensor) -> None:
        self._entries: dict[str, Tensor] = {**(entries or {}), **named}
        if len({len(value) for value in self._entries.values()}) > 1:
            rows = ", ".join(f"{name} {len(value)}" for name, value in self._entries.items())
            raise AyfError(f"the entries of a condition must have one row a sample each; their rows are: {rows}")

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        """The number of entries, as of any mapping; `count` is the number of samples."""
        return len(self._entries)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "Condition(" + ", ".join(f"{name}={tuple(v.shape)}" for name, v in self._entries.items()) + ")"

    @property
    def count(self) -> int | None:
        """The number of samples B; None of a condition without entries, which fits any batch."""
        return next((len(value) for value in self._entries.values()), None)

    def rows(self, index: slice | Tensor) -> Condition:
        """The condition of these samples."""
        return Condition({name: value[index] for name, value in self._entries.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Condition:
        """The same on another device."""
        return Condition({name: value.to(device, non_blocking=non_blocking) for name, value in self._entries.items()})

    def only(self, names: Iterable[str]) -> Condition:
        """The entries of these names, as far as there are any."""
        wanted = set(names)
        return Condition({name: value for name, value in self._entries.items() if name in wanted})

    def dropped(self, mask: Tensor, spec: ConditionSpec) -> Condition:
        """Each entry's null in the rows where the mask [B] is true; an entry that `spec` does not name stays."""
        changed = dict(self._entries)
        for name, kind in spec.items():
            if name in changed:
                value = changed[name]
                where = mask.view(-1, *(1,) * (value.ndim - 1))
                changed[name] = torch.where(where, kind.null(len(value), value.device), value)
        return Condition(changed)

    def null(self, spec: ConditionSpec) -> Condition:
        """Nothing given, for as many samples: the null of each entry that `spec` names."""
        nulls = {name: spec[name].null(len(v), v.device) for name, v in self._entries.items() if name in spec}
        return Condition({**self._entries, **nulls})


class ConditionKind(Protocol):
    """What one name of a condition stands for; a frozen dataclass of plain values, registered in room `condition`."""

    name: str
    """Of the kind, in the registry."""

    @property
    def is_constant(self) -> bool:
        """Whether it has a single value, which tells a network nothing."""
        ...

    def null(self, count: int, device: torch.device | str) -> Tensor:
        """'Nothing given' for so many samples."""
        ...

    def checked(self, entry: str, value: Any) -> Tensor:
        """What a person gave for the entry, as a tensor. Raises AyfError for what it cannot be."""
        ...


@register("condition", "class_labels", title="Class labels")
@dataclass(frozen=True)
class ClassLabels:
    """Whole numbers [B] from 0 to num_classes - 1; the null is the index num_classes."""

    num_classes: int
    name = "class_labels"

    @property
    def is_constant(self) -> bool:
        return self.num_classes <= 1

    def null(self, count: int, device: torch.device | str) -> Tensor:
        return torch.full((count,), self.num_classes, dtype=torch.long, device=device)

    def checked(self, entry: str, value: Any) -> Tensor:
        """The labels [B] int64 of a list, array or tensor of whole numbers.

        Raises:
            AyfError: it is something else, or a label is none of the classes (the null is allowed).
        """
        try:
            labels = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            labels = torch.empty(0, 0)
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise AyfError(f"{entry} must be a list of whole numbers, one a sample, such as [3, 7]; got {value!r:.80}")
        outside = [label for label in labels.tolist() if not 0 <= label <= self.num_classes]
        if outside:
            raise AyfError(f"label {outside[0]} is not one of the model's classes: choose 0 to {self.num_classes - 1}")
        return labels.long()


class ConditionSpec(Mapping[str, ConditionKind]):
    """What each name of a condition stands for; empty for unconditional data.

    Example:
        >>> spec = ConditionSpec(labels=ClassLabels(10))
        >>> spec.condition({"labels": [3, 7]}, count=2)
        Condition(labels=(2,))
    """

    __slots__ = ("_kinds",)

    def __init__(self, kinds: Mapping[str, ConditionKind] | None = None, /, **named: ConditionKind) -> None:
        self._kinds: dict[str, ConditionKind] = {**(kinds or {}), **named}

    def __getitem__(self, name: str) -> ConditionKind:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._kinds)))

    def __repr__(self) -> str:
        return "ConditionSpec(" + ", ".join(f"{name}={kind!r}" for name, kind in self._kinds.items()) + ")"

    def informative(self) -> ConditionSpec:
        """Without the entries that have a single value: what a network is worth being told."""
        return ConditionSpec({name: kind for name, kind in self._kinds.items() if not kind.is_constant})

    def null(self, count: int, device: torch.device | str = "cpu") -> Condition:
        """Nothing given, for so many samples."""
        return Condition({name: kind.null(count, device) for name, kind in self._kinds.items()})

    def condition(self, given: Mapping[str, Any], count: int, device: torch.device | str = "cpu") -> Condition:
        """What a person gave by name, checked: lists or tensors with one row for each of `count` samples.

        Raises:
            AyfError: a name or a value that this spec does not allow, or another number of rows.
        """
        unknown = [name for name in given if name not in self._kinds]
        if unknown:
            takes = f"it takes {', '.join(self._kinds)}" if self._kinds else "it takes no condition: leave it out"
            raise AyfError(f"this model is not conditioned on {unknown[0]!r}: {takes}")
        entries = {name: self._kinds[name].checked(name, value) for name, value in given.items() if value is not None}
        for name, value in entries.items():
            if len(value) != count:
                raise AyfError(f"{len(value)} {name} for {count} samples: give one for each")
        return Condition(entries).to(device)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `model.json`."""
        return {name: {"kind": kind.name, **asdict(kind)} for name, kind in self._kinds.items()}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, document: Mapping[str, Mapping[str, Any]]) -> ConditionSpec:
        """The opposite of `to_dict`.

        Raises:
            AyfError: an entry of a kind that is not known.
        """
        kinds = {}
        for name, entry in document.items():
            values = dict(entry)
            kinds[name] = find("condition", values.pop("kind")).load()(**values)
        return cls(kinds)


def class_labels(num_classes: int) -> ConditionSpec:
    """The conditions of data whose samples have one of so many classes; of 0, none."""
    return ConditionSpec(labels=ClassLabels(num_classes)) if num_classes else ConditionSpec()


def as_condition(given: Condition | Mapping[str, Any] | Sequence[Any] | None) -> Mapping[str, Any]:
    """What a person gave as a condition, as a mapping.

    Raises:
        AyfError: it has no names.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise AyfError("a condition has names: pass labels=[3, 7], or Condition(labels=...)")
    return given
