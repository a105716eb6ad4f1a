"""What is said of settings: the line for a wrong one, the nearest valid key, values as text that YAML reads back."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from ayf_core.errors import AyfError
from ayf_core.settings import Setting

_NEAR = 0.6
"""Likeness of two names (difflib's ratio) from which one is offered for the other: a wrong offer is worse than none."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that the given one most likely meant, or None where none is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=_NEAR)
    return found[0] if found else None


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known dotted key that the given one most likely meant: each part is looked for in its own group only.

    So `distil.emd.training.steps` means `distill.emd.training.steps`, and `student.width` means nothing.
    """
    tree: dict[str, Any] = {}
    for name in known:
        branch = tree
        for part in name.split("."):
            branch = branch.setdefault(part, {})
    branch, passed = tree, []
    for part in key.split("."):
        meant = part if part in branch else nearest(part, branch)
        if meant is None:
            return None
        passed.append(meant)
        branch = branch[meant]
    return ".".join(passed)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The line for a key that is no setting: what was meant, else what its group holds."""
    known = list(known)
    guess = nearest_key(key, known)
    if guess is not None:
        return f"unknown setting {key}: did you mean {guess}?"
    group = key
    while "." in group:
        group = group.rpartition(".")[0]
        held = dict.fromkeys(name[len(group) + 1 :].split(".")[0] for name in known if name.startswith(f"{group}."))
        if held:
            return f"unknown setting {key}: {group} holds {', '.join(held)}"
    return f"unknown setting {key}: there are {', '.join(dict.fromkeys(name.split('.')[0] for name in known))}"


def out_of_range(key: str, setting: Setting, value: Any) -> str:
    """The line that says what a setting holds, what it may hold and what to do."""
    guess = nearest(value, setting.words()) if setting.words() and isinstance(value, str) else None
    hint = f" (did you mean {guess}?)" if guess else ""
    held = value
    if setting.is_list and isinstance(value, list | tuple):
        wrong = [item for item in value if not _right_type(setting, item)]
        if wrong:
            return f"{key} holds {literal(wrong[0])}: must be {setting.allowed()}{hint}; choose such a value"
    return f"{key} = {literal(held)}: must be {setting.allowed()}{hint}; choose such a value"


def _right_type(setting: Setting, item: Any) -> bool:
    return type(item) is setting.kind or (setting.kind is float and type(item) is int)


def subtree(values: Mapping[str, Any], key: str) -> Any:
    """The part of nested mappings at a dotted key.

    Raises:
        AyfError: there is no such key; names it and the nearest one beside it.
    """
    part: Any = values
    passed: list[str] = []
    for name in key.split("."):
        if not isinstance(part, Mapping) or name not in part:
            guess = nearest(name, map(str, part)) if isinstance(part, Mapping) else None
            raise AyfError(f"no setting {key}" + (f": did you mean {'.'.join([*passed, guess])}?" if guess else ""))
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
    """A setting's value as one line of YAML; Hydra's command line reads the same text."""
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
