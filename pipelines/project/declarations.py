"""What dvc.yaml declares of each stage: what it reads, obeys and writes; and the fingerprint of what it reads.

dvc.yaml is the one declaration. DVC decides by it what to run again; this module reads it for everything else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.files import inside, read_json
from pipelines.settings.yaml_file import parse_yaml

CODE_FOLDER = ".code"
"""Where the stage `code` writes what each stage's code is: see `pipelines.project.code`."""

NOT_INPUTS = ("__pycache__", "sampling.json", "README.md")
"""What lies in inputs and is none, as .dvcignore has it: byte code, the tuned sampling settings that stand beside a
model's weights, what tells people where to put their images."""


@dataclass(frozen=True)
class Declaration:
    """A stage as dvc.yaml declares it; of a matrix, one entry. Paths are relative to the project."""

    name: str
    base: str
    item: dict[str, Any] = field(default_factory=dict)
    deps: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def read_declarations(root: Path) -> dict[str, Declaration]:
    """Every stage of dvc.yaml, matrix entries as `distill@emd`.

    Raises:
        AyfError: there is no dvc.yaml, it is not YAML, or a stage would write outside the project.
    """
    path = root / "dvc.yaml"
    try:
        document = parse_yaml(path.read_text()) or {}
    except FileNotFoundError as error:
        raise AyfError(f"no dvc.yaml in {root}: run this in the project's folder") from error
    except ValueError as error:
        raise AyfError(f"{path} is not YAML: {error}") from error
    known = {**read_params(root), **_variables(document.get("vars"), path)}
    declared = {}
    for base, body in (document.get("stages") or {}).items():
        for item in _matrix_items(body.get("matrix"), known):
            values = {**known, "item": item}
            name = f"{base}@{'-'.join(str(value) for value in item.values())}" if item else base
            inside(root / "runs", name, path)
            declared[name] = Declaration(
                name=name,
                base=base,
                item=item,
                deps=_paths(body.get("deps"), values),
                params=_param_keys(body.get("params"), values),
                outputs=tuple(p for part in ("outs", "metrics", "plots") for p in _paths(body.get(part), values)),
            )
            for out in declared[name].outputs:
                inside(root, out, path)
    return declared


def _variables(entries: list | None, path: Path) -> dict[str, Any]:
    """The values under `vars`, which stand beside those of params.yaml."""
    values: dict[str, Any] = {}
    for entry in entries or []:
        if not isinstance(entry, Mapping):
            raise AyfError(f"{path}: vars name the file {entry}; this project has values there only")
        values |= entry
    return values


def _matrix_items(matrix: Mapping[str, Any] | None, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One item for each combination; an axis is a list, or the `${NAME}` of one. An empty list makes no stage."""
    if not matrix:
        return [{}]
    axes = {name: _axis(name, values, known) for name, values in matrix.items()}
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _axis(name: str, values: Any, known: Mapping[str, Any]) -> list[Any]:
    if isinstance(values, str):
        match = re.fullmatch(r"\$\{([^}]+)\}", values.strip())
        values = _value(match[1], known) if match else values
    if not isinstance(values, list):
        raise AyfError(f"dvc.yaml: the matrix's {name} is {values!r}: make it a list")
    return [_filled(item, known) if isinstance(item, str) else item for item in values]


def _paths(entries: list | None, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of a `deps` or `outs` list; an entry is a path, or a path with its options."""
    names = [next(iter(entry)) if isinstance(entry, Mapping) else entry for entry in entries or []]
    return tuple(_filled(str(name), values) for name in names)


def _param_keys(entries: list | None, values: Mapping[str, Any]) -> tuple[str, ...]:
    keys: list[str] = []
    for entry in entries or []:
        if isinstance(entry, Mapping):
            raise AyfError(f"dvc.yaml: params {entry} name another file; this project has params.yaml only")
        keys.append(_filled(str(entry), values))
    return tuple(keys)


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """`text` with each `${a.b}` replaced, as DVC does: by the matrix's item, or by a setting of params.yaml."""

    return re.sub(r"\$\{([^}]+)\}", lambda match: str(_value(match[1], values)), text)


def _value(name: str, values: Mapping[str, Any]) -> Any:
    found: Any = values
    for part in name.strip().split("."):
        if not isinstance(found, Mapping) or part not in found:
            known = "neither the matrix's ${item.NAME} nor a setting of params.yaml"
            raise AyfError(f"dvc.yaml: ${{{name}}} is {known}")
        found = found[part]
    return found


def read_params(root: Path) -> dict[str, Any]:
    """params.yaml as it stands, unchecked; empty where there is none."""
    path = root / "params.yaml"
    return (parse_yaml(path.read_text()) or {}) if path.exists() else {}


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a folder's tree: names and contents, without what is no input (`NOT_INPUTS`).

    A folder whose manifest.json holds the checksums of its shards is known by the manifest alone: latents may
    be large, and the reader checks them against it.
    """
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    manifest = path / "manifest.json"
    if manifest.is_file() and _holds_checksums(manifest):
        return fingerprint(manifest)
    tree = hashlib.sha256()
    for file in sorted(path.rglob("*"), key=lambda p: p.relative_to(path).as_posix()):
        if file.is_file() and not any(part in NOT_INPUTS for part in file.relative_to(path).parts):
            tree.update(f"{file.relative_to(path).as_posix()}\0{fingerprint(file)}\n".encode())
    return tree.hexdigest()


def _holds_checksums(manifest: Path) -> bool:
    try:
        shards = read_json(manifest).get("shards", [])
        return bool(shards) and all("sha256" in shard for shard in shards)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def declared_params(document: Mapping[str, Any], declaration: Declaration) -> dict[str, Any]:
    """The values of params.yaml (as nested mappings) that the stage declares, by dotted key.

    Raises:
        AyfError: a declared key is not in params.yaml.
    """
    values = {}
    for key in declaration.params:
        found: Any = document
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise AyfError(f"params.yaml has no {key}, which {declaration.name} declares in dvc.yaml: add it")
            found = found[part]
        values[key] = found
    return values


def check_deps(root: Path, declaration: Declaration, declared: Mapping[str, Declaration]) -> None:
    """Raises AyfError naming the first thing the stage reads that is not there, and what makes it."""
    for dep in sorted(
        declaration.deps, key=lambda dep: dep.startswith(f"{CODE_FOLDER}/")
    ):  # any `dvc repro` makes these
        if (root / dep).exists():
            continue
        maker = next((d.name for d in declared.values() if any(overlap(dep, out) for out in d.outputs)), None)
        remedy = f"run `dvc repro {maker}`, which makes it" if maker else "no stage makes it: restore it (git)"
        raise AyfError(f"{declaration.name} reads {dep}, which is missing; {remedy}")


def overlap(one: str, other: str) -> bool:
    """Whether two declared paths are the same, or one lies in the other."""
    a, b = Path(one), Path(other)
    return a == b or a in b.parents or b in a.parents
