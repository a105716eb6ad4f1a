"""Components by room and name: what there is, where it stands, and what is known of it without importing it.

A component is a class or function with the decorator `register(room, name, title=...)`, in any module of this package
or of a plug-in. The modules' text is searched for the decorator; a component's own module is imported when it is asked
for. So the names are known without torch, a new component is a new file and nothing else, and code that uses one
component does not depend on the others.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ayf_core.errors import AyfError

T = TypeVar("T")

ROOMS: Mapping[str, str] = {
    "network": "network",
    "objective": "objective",
    "data set": "data set",
    "codec": "codec",
    "features": "space of features",
    "measure": "measure of quality",
    "time law": "law of the time t",
    "pair law": "law of the pairs (t, s)",
    "weighting": "weighting",
    "schedule": "learning-rate schedule",
    "guidance": "kind of guidance",
    "grid": "time grid",
    "tangent": "derivative engine",
    "condition": "kind of condition",
}
"""The rooms, and what one thing in each is called."""

_plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Component:
    """A registered component.

    Attributes:
        module, attribute: where it stands.
        facts: the decorator's other arguments: `title`, and whatever its room asks for.
    """

    room: str
    name: str
    module: str
    attribute: str
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def title(self) -> str:
        """Its name as people read it."""
        return str(self.facts.get("title", self.name.replace("_", " ")))

    def load(self) -> Any:
        """The class or function itself; imports its module."""
        return getattr(importlib.import_module(self.module), self.attribute)


@dataclass(frozen=True)
class Chosen:
    """A component and the values of its settings: plain data, which travels to other processes."""

    component: Component
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The component's name."""
        return self.component.name

    def build(self, **given: Any) -> Any:
        """The component built from its settings and what the caller hands over."""
        return self.component.load()(**self.values, **given)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def register(room: str, name: str, **facts: Any) -> Callable[[T], T]:
    """Register a class or function as the component `name` of a room.

    All arguments are literals: they are read from the module's text.

    Args:
        facts: `title`, its name as people read it; others as its room asks.
    """
    if room not in ROOMS:
        raise ValueError(f"no room {room!r}: there are {', '.join(ROOMS)}")

    def marked(component: T) -> T:
        return component

    return marked


def use_plugins(packages: Iterable[str], beside: str | Path | None = None) -> None:
    """Search these packages too, in place of any named before.

    Args:
        beside: a folder that may hold them, such as the project's.

    Raises:
        AyfError: one of them cannot be found.
    """
    global _plugins
    packages = tuple(packages)
    if packages and beside is not None and str(beside) not in sys.path:
        sys.path.append(str(beside))
    for package in packages:
        files_of(package)
    _plugins = packages
    _components.cache_clear()


def plugins() -> tuple[str, ...]:
    """The packages that are searched besides this one."""
    return _plugins


def components(room: str) -> Mapping[str, Component]:
    """What there is in a room, by name, in the order of the names."""
    return _components(room)


def names(room: str) -> tuple[str, ...]:
    """The names in a room."""
    return tuple(_components(room))


def find(room: str, name: Any) -> Component:
    """A component of a room.

    Raises:
        AyfError: there is none of that name; the nearest is named.
    """
    known = _components(room)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}"
        raise AyfError(f"unknown {ROOMS[room]} {name!r}: {hint}")
    return known[name]


@cache
def _components(room: str) -> Mapping[str, Component]:
    found: dict[str, Component] = {}
    for package in ("ayf_core", *_plugins):
        for component in _registered(package):
            if component.room != room:
                continue
            other = found.get(component.name)
            if other is not None:
                raise AyfError(
                    f"{component.module} registers the {ROOMS[room]} {component.name!r}, which {other.module} has "
                    "already: give it another name"
                )
            found[component.name] = component
    return dict(sorted(found.items()))


@cache
def _registered(package: str) -> tuple[Component, ...]:
    return tuple(component for file, module in files_of(package) for component in _read(file, module))


def files_of(package: str) -> list[tuple[Path, str]]:
    """Every module of a package (or a module alone): its file and its dotted name.

    Raises:
        AyfError: there is no such package.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise AyfError(f"plugins: there is no package {package!r}: install it, or put its folder beside params.yaml")
    if not spec.submodule_search_locations:
        return [(Path(str(spec.origin)), package)]
    files = []
    for place in map(Path, spec.submodule_search_locations):
        for file in sorted(place.rglob("*.py")):
            parts = [package, *file.relative_to(place).with_suffix("").parts]
            files.append((file, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)))
    return files


def _read(file: Path, module: str) -> Iterable[Component]:
    text = file.read_text(encoding="utf-8")
    if "@register(" not in text:
        return
    for node in ast.parse(text, str(file)).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == "register":
                try:
                    room, name = (ast.literal_eval(argument) for argument in decorator.args)
                    facts = {str(word.arg): ast.literal_eval(word.value) for word in decorator.keywords}
                except ValueError:
                    raise AyfError(f"{file}, line {node.lineno}: the arguments of register must be literals") from None
                yield Component(room, name, module, node.name, facts)
