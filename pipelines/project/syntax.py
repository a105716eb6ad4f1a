"""What a module's text says that can change a result: its syntax tree, and the modules that it imports.

Left out, because they cannot: comments and formatting, docstrings and other texts that stand alone, the meaning
(`help`) of a setting, `pass`, and what only a type checker reads. Versions of Python agree: fields of the tree that are
empty or hold no meaning do not count, so a field that a later version adds changes nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ayf_core.errors import AyfError

_NO_MEANING = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_REGISTRY = "ayf_core.registry"
_SETTINGS = {"setting": 0, "group": 0, "chosen": 1, "each": 1}
"""The functions that declare settings (`ayf_core.settings`), and where their `help` stands."""


@dataclass(frozen=True)
class Import:
    """`import module` (no names), or `from module import names`."""

    module: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A module's text, read.

    Attributes:
        digest: SHA-256 of what can change a result.
        imports: what it imports when it runs, inside functions too.
        lazy: public names that it imports when they are first asked for (its own `__getattr__`), as its imports for
            type checkers declare them: where each comes from.
        components: the components that it asks the registry for by literal room and name; without a name, the
            whole room.
    """

    digest: str
    imports: tuple[Import, ...]
    lazy: Mapping[str, Import]
    components: tuple[tuple[str, str | None], ...]


def read_source(path: Path, module: str) -> Source:
    """Read the file of the module with this dotted name; again only when the file has changed.

    Raises:
        AyfError: it is not Python; the line is named.
    """
    status = path.stat()
    return _read(path, module, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=4096)
def _read(path: Path, module: str, *_version: int) -> Source:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise AyfError(f"{path}{line}: this is not Python ({getattr(error, 'msg', error)}): mend it") from error
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    running = ast.Module(body=_running(tree.body), type_ignores=[])
    imports = tuple(_imports(running, package))
    declaring = {name for found in imports if found.module == "ayf_core.settings" for name in found.names}
    return Source(
        digest=_digest(running, {name: place for name, place in _SETTINGS.items() if name in declaring}),
        imports=imports,
        lazy=_lazy(tree, package),
        components=tuple(_components(running, imports)),
    )


# ------------------------------------------------------------------------------------------------- what it says


def _digest(node: ast.AST, settings: Mapping[str, int]) -> str:
    words: list[str] = []
    _spell(node, settings, words)
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()


def _spell(value: Any, settings: Mapping[str, int], words: list[str]) -> None:
    """The tree as a sequence of words that can be read back in one way only."""
    if isinstance(value, ast.AST):
        words.append(f"({type(value).__name__}")
        for name, content in _fields(value, settings):
            if name not in _NO_MEANING and content is not None and content != []:
                words.append(f".{name}")
                _spell(content, settings, words)
        words.append(")")
    elif isinstance(value, list):
        words.append("[")
        for item in value:
            _spell(item, settings, words)
        words.append("]")
    elif isinstance(value, str):
        words.append(f"str {len(value)} {value}")  # not its repr, which depends on Python's tables of characters
    else:
        words.append(f"{type(value).__name__} {value!r}")


def _fields(node: ast.AST, settings: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    """The fields of a node, without what cannot matter."""
    if isinstance(node, ast.JoinedStr):
        yield "values", _joined(node.values)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in settings:
        place = settings[node.func.id]
        yield "func", node.func
        yield "args", [word for number, word in enumerate(node.args) if number != place]
        yield "keywords", [word for word in node.keywords if word.arg != "help"]
    else:
        for name, content in ast.iter_fields(node):
            in_order = name in ("body", "orelse", "finalbody") and isinstance(content, list)
            yield name, _running(content) if in_order else content


def _joined(values: Sequence[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with neighbouring texts in one: versions of Python split them differently."""
    parts: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and parts and isinstance(parts[-1], ast.Constant):
            parts[-1] = ast.Constant(value=str(parts[-1].value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            parts.append(value)
    return parts


def _running(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Statements less those that do nothing when the module runs."""
    kept: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.If) and _is_type_checking(statement.test):
            kept += _running(statement.orelse)
        elif not (
            isinstance(statement, ast.Pass)
            or (isinstance(statement, ast.Expr) and _is_text(statement.value))
            or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")
        ):
            kept.append(statement)
    return kept


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_type_checking(test: ast.expr) -> bool:
    return (test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)) == "TYPE_CHECKING"


# ---------------------------------------------------------------------------------------------- what it imports


def _imports(node: ast.AST, package: str) -> Iterator[Import]:
    """Imports below a node, those for type checkers left out."""
    for name, content in ast.iter_fields(node):
        below = content if isinstance(content, list) else [content]
        if name in ("body", "orelse", "finalbody") and isinstance(content, list):
            below = _running(content)
        for child in below:
            if isinstance(child, ast.Import):
                yield from (Import(alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield _from(child, package)
            elif isinstance(child, ast.AST):
                yield from _imports(child, package)


def _from(node: ast.ImportFrom, package: str) -> Import:
    module = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        module = ".".join([*above, *([module] if module else [])])
    return Import(module, tuple(alias.name for alias in node.names))


def _lazy(tree: ast.Module, package: str) -> dict[str, Import]:
    if not any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
        return {}
    return {
        alias.asname or alias.name: Import(_from(node, package).module, (alias.name,))
        for block in tree.body
        if isinstance(block, ast.If) and _is_type_checking(block.test)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _components(tree: ast.AST, imports: Sequence[Import]) -> Iterator[tuple[str, str | None]]:
    """`find("network", "dit")` and `components("measure")`, where these are the registry's functions."""
    known = {name for found in imports if found.module == _REGISTRY for name in found.names}
    known |= (
        {"find", "components"}
        if Import(_REGISTRY) in imports or Import("ayf_core", ("registry",)) in imports
        else set()
    )
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        words = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        if called == "find" and called in known and len(words) == 2:
            yield words[0], words[1]
        elif called == "components" and called in known and len(words) == 1:
            yield words[0], None
