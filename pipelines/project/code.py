"""The code that can change a stage's result: what its module imports, and the components that its settings choose.

The stage `code` of dvc.yaml writes it into one small file a stage, `.code/STAGE.json` (a digest for each module), which
the stage lists among its deps. So DVC and the key of a scratch folder see a change of code exactly where it counts.

A component is imported by name when it runs: it is no part of what the stage's module imports, and a new component
changes no stage. Those that a stage's settings choose are added here; so is a whole room that the stage goes through.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from ayf_core.errors import AyfError
from ayf_core.files import write_whole
from ayf_core.registry import components, files_of, use_plugins
from pipelines.project.accepted import accepted_changes, as_accepted
from pipelines.project.choices import chosen_components
from pipelines.project.declarations import CODE_FOLDER, Declaration, read_declarations, read_params
from pipelines.project.syntax import Import, Source, read_source

PLUGIN_FOLDER = "plugins"
PLUGIN_STAGE = "plugin"
PACKAGES = ("ayf_core", "dashboards", "pipelines")
"""The project's own packages that a stage may import; those of `plugins` in params.yaml are watched besides."""

Modules = Mapping[str, str]
"""Digests of modules by dotted name."""


class Sources:
    """The modules of a project and of its plug-ins, each read once.

    Args:
        root: the project. Its own folders are read; of a package that is not among them, the installed one.
    """

    def __init__(self, root: Path, packages: Iterable[str]) -> None:
        self._root = root
        self._tops = {package.partition(".")[0] for package in packages}
        self._read: dict[str, Source | None] = {}

    def closure(self, modules: Iterable[str]) -> dict[str, str]:
        """The digest of each module that is imported when these are, themselves included.

        Raises:
            AyfError: one of them cannot be read.
        """
        found: dict[str, str] = {}
        waiting = [Import(module) for module in modules]
        seen: set[Import] = set()
        while waiting:
            wanted = waiting.pop()
            if wanted in seen:
                continue
            seen.add(wanted)
            for module in self._named(wanted):
                source = self._source(module)
                if source is None or module in found:
                    continue
                found[module] = source.digest
                waiting += source.imports
                waiting += [Import(name) for name in _asked_for(source)]
            waiting += self._lazily(wanted)
        return dict(sorted(found.items()))

    def _named(self, wanted: Import) -> list[str]:
        """The modules that an import may name: packages above, the module, and names that may be modules in it."""
        parts = wanted.module.split(".")
        above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return [*above, *(f"{wanted.module}.{name}" for name in wanted.names)]

    def _lazily(self, wanted: Import) -> list[Import]:
        """What a package imports when the names of this import are first asked of it; without names, any of them."""
        source = self._source(wanted.module)
        if source is None:
            return []
        names = wanted.names if wanted.names and "*" not in wanted.names else tuple(source.lazy)
        return [source.lazy[name] for name in names if name in source.lazy]

    def _source(self, module: str) -> Source | None:
        if module not in self._read:
            path = self._file(module)
            self._read[module] = None if path is None else read_source(path, module)
        return self._read[module]

    def _file(self, module: str) -> Path | None:
        top, *below = module.split(".")
        if top not in self._tops:
            return None
        place = _place(self._root, top)
        if place is None and top in PACKAGES:
            return None
        if place is None:
            raise AyfError(f"plugins: there is no package {top}: install it, or put its folder beside params.yaml")
        if place.is_file():
            return place if not below else None
        folder = place.joinpath(*below)
        candidates = (folder / "__init__.py", folder.with_suffix(".py") if below else folder / "__init__.py")
        return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def _place(root: Path, top: str) -> Path | None:
    """The folder of a package, or the file of a module: beside dvc.yaml, else where it is installed."""
    for place in (root / top, root / f"{top}.py"):
        if place.exists():
            return place
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


def _asked_for(source: Source) -> list[str]:
    """Modules of the components that a module asks the registry for by name; of a whole room, all."""
    return [
        component.module
        for room, name in source.components
        for component in components(room).values()
        if name in (None, component.name)
    ]


def plugins_of(root: Path) -> tuple[str, ...]:
    """The packages named under `plugins`, as dvc.yaml's stage of that name has them."""
    return tuple(d.item["package"] for d in read_declarations(root).values() if d.base == PLUGIN_STAGE)


def code_file(root: Path, stage: str) -> Path:
    """Where the code of a stage is written down."""
    return root / CODE_FOLDER / f"{stage}.json"


def stage_code(root: Path, stages: Iterable[str] | None = None, *, accepted: bool = True) -> dict[str, dict[str, str]]:
    """The modules that can change each stage's result, with what was accepted as harmless counted as before.

    Args:
        stages: None takes every stage of dvc.yaml that lists a code file.
        accepted: whether accepted changes count as before.

    Raises:
        AyfError: a module cannot be read, or a stage has none.
    """
    declared, params = read_declarations(root), read_params(root)
    plugins = plugins_of(root)
    use_plugins(plugins, root)
    sources = Sources(root, [*PACKAGES, *plugins])
    changes = accepted_changes(root) if accepted else []
    found = {}
    for stage in declared if stages is None else stages:
        if lists_code(declared[stage]):
            own = f"pipelines.stages.{declared[stage].base}"
            chosen = [component.module for component in chosen_components(declared[stage], declared, params)]
            modules = sources.closure([own, *chosen])
            if own not in modules:
                raise AyfError(f"the stage {declared[stage].base} of dvc.yaml has no code: there is no {own}")
            found[stage] = as_accepted(modules, stage, changes)
    return found


def lists_code(declaration: Declaration) -> bool:
    """Whether a stage has its own code file among its deps."""
    return f"{CODE_FOLDER}/{declaration.name}.json" in declaration.deps


def as_text(modules: Modules) -> str:
    """What a code file holds: the same for the same code."""
    return json.dumps(dict(sorted(modules.items())), indent=0) + "\n"


def write_code(root: Path) -> None:
    """Write the code file of every stage; what is up to date stays as it is. The work of the stage `code`."""
    written = {}
    (root / CODE_FOLDER).mkdir(exist_ok=True)
    for stage, modules in stage_code(root).items():
        written[path := code_file(root, stage)] = as_text(modules)
        if not path.exists() or path.read_text() != written[path]:
            write_whole(path, written[path])
    plugins = [root / PLUGIN_FOLDER / f"{package}.json" for package in plugins_of(root)]
    for folder in (CODE_FOLDER, PLUGIN_FOLDER):
        for other in (root / folder).glob("*.json"):
            if other not in (*written, *plugins):
                other.unlink()


def write_plugin(root: Path, package: str) -> None:
    """Write the digest of each module of a plug-in, so that DVC sees it change. The work of the stage `plugin`."""
    use_plugins([package], root)
    modules = {module: read_source(file, module).digest for file, module in files_of(package)}
    path = root / PLUGIN_FOLDER / f"{package}.json"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, as_text(modules))


def check_code(root: Path, declaration: Declaration) -> None:
    """Raises AyfError where a stage's code was edited since its code file was written."""
    if not lists_code(declaration):
        return
    written = code_file(root, declaration.name).read_text()
    now = as_text(stage_code(root, [declaration.name])[declaration.name])
    if written != now:
        names = ", ".join(differences(json.loads(written), json.loads(now)))
        raise AyfError(
            f"the code or the choices of {declaration.name} changed since {CODE_FOLDER} was written ({names}): "
            "run `dvc repro --force code`, which takes a second, then the same again"
        )


def differences(before: Modules, after: Modules) -> list[str]:
    """The modules that differ, in words."""
    return [
        f"{module}{' (new)' if module not in before else ' (gone)' if module not in after else ''}"
        for module in sorted(before.keys() | after.keys())
        if before.get(module) != after.get(module)
    ]


def main(arguments: list[str]) -> int:
    """`python3 -m pipelines code [PLUGIN]`: write the code files of the project in this folder, or of one plug-in."""
    try:
        if len(arguments) > 1:
            write_plugin(Path.cwd(), arguments[1])
        else:
            write_code(Path.cwd())
    except AyfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
