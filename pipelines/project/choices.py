"""Which components of the library a stage uses, by the settings that dvc.yaml declares for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ayf_core.registry import Component, components
from pipelines.project.declarations import Declaration, declared_params, overlap

ROOMS = {
    r"(.*\.)?network\.kind": "network",
    r"adversarial\.student": "objective",
    r"data\.name": "data set",
    r"codec\.kind": "codec",
    r"features\.kind": "features",
    r"(.*\.)?guidance\.kind": "guidance",
    r"(.*\.)?tangent\.backend": "tangent",
    r"(.*\.)?weighting(\.kind)?": "weighting",
    r"(weak_)?teacher\.time_law\.kind": "time law",
    r"distill\.time_law\.kind": "pair law",
    r"(.*\.)?schedule(\.kind)?": "schedule",
}
"""The settings that name a component, and its room."""

_LOADED = ("network", "codec", "features")
"""Rooms whose components go into a stage's outputs: whoever reads these outputs builds the components again."""


def chosen_components(
    declaration: Declaration, declared: Mapping[str, Declaration], params: Mapping[str, Any]
) -> list[Component]:
    """The components that the stage's settings and its matrix item name, and those in the models that it reads.

    Args:
        params: params.yaml, as nested mappings.

    Raises:
        AyfError: a declared setting is not in `params`.
    """
    found = dict.fromkeys(_named(declaration, params))
    for maker in _makers(declaration, declared):
        found |= {component: None for component in _named(maker, params) if component.room in _LOADED}
    return list(found)


def _makers(declaration: Declaration, declared: Mapping[str, Declaration]) -> list[Declaration]:
    """The stages that make what this one reads, and what those read, all the way up."""
    found: dict[str, Declaration] = {}
    waiting = [declaration]
    while waiting:
        deps = waiting.pop().deps
        for maker in declared.values():
            if maker.name not in found and any(overlap(dep, out) for dep in deps for out in maker.outputs):
                found[maker.name] = maker
                waiting.append(maker)
    return list(found.values())


def _named(declaration: Declaration, params: Mapping[str, Any]) -> Iterator[Component]:
    named = [("objective", value) for key, value in declaration.item.items() if key == "objective"]
    for key, value in _leaves(declared_params(params, declaration)):
        named += [(room, value) for pattern, room in ROOMS.items() if re.fullmatch(pattern, key)]
    for room, name in named:
        component = components(room).get(str(name))
        if component is not None:
            yield component


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
