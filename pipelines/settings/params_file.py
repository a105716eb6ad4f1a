"""Writing ``params.yaml`` from presets and overrides, and saying how it differs from a preset.

The file is a function of its values and of the preset its header names: writing the same settings twice gives
the same bytes, with the comments that the dataclasses of :mod:`pipelines.settings.experiment` declare.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayf_core.errors import AyfError
from pipelines.settings import model as settings
from pipelines.settings.experiment import PARAMS_FILE, Config, checked, compose, conf_folder, read_config

DEFAULT_PRESET = "digits"
_HEADER = re.compile(r"^#\s+ayf params use preset=(?P<preset>[\w-]+)", re.MULTILINE)
_OVERRIDE = re.compile(r"^(?P<key>[A-Za-z_][\w.]*)=(?P<value>.*)$", re.DOTALL)


@dataclass(frozen=True)
class Change:
    """One setting that differs; values are lines of YAML."""

    key: str
    before: str
    after: str


def presets(root: Path) -> list[str]:
    """The names ``ayf params use preset=NAME`` takes."""
    return sorted(path.stem for path in (conf_folder(root) / "preset").glob("*.yaml"))


def from_preset(root: Path, preset: str, overrides: Sequence[str] = ()) -> Config:
    """The checked settings of a preset with overrides such as ``teacher.training.steps=100``.

    Raises:
        AyfError: the preset or a key is unknown (the nearest is named), or a value is wrong.
    """
    known = presets(root)
    if preset not in known:
        guess = settings.nearest(preset, known)
        hint = f"did you mean {guess}?" if guess else f"choose one of {', '.join(known)}"
        raise AyfError(f"no preset {preset}: {hint}")
    return _composed(root, "from_preset", [f"preset={preset}"], overrides)


def changed(root: Path, overrides: Sequence[str]) -> Config:
    """The checked settings of ``params.yaml`` with overrides.

    The file itself need only be well formed: an override may be the remedy of a value that is wrong.

    Raises:
        AyfError: as :func:`from_preset`, or the file cannot be read.
    """
    config, problems = read_config(root)
    if config is None:
        raise AyfError(problems[0])
    return _composed(root, "root", [], overrides)


def _composed(root: Path, recipe: str, groups: Sequence[str], overrides: Sequence[str]) -> Config:
    for override in overrides:
        _check_override(override)
        _check_value(override)
    config, problems = checked(compose(root, recipe, [*groups, *overrides]))
    if config is None or problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise AyfError(problems[0] + more)
    return config


def _check_override(override: str) -> None:
    match = _OVERRIDE.match(override)
    if match is None:
        raise AyfError(f"cannot read {override!r}: write a setting as key=value, e.g. teacher.training.steps=500")
    key = match["key"]
    if "${" in match["value"]:
        raise AyfError(f"{key} would refer to another value with ${{...}}: write the value out")
    if key in settings.groups_of(Config):
        inside = [leaf for leaf in settings.settings_of(Config) if leaf.startswith(f"{key}.")]
        raise AyfError(f"{key} is a group of settings: name one of them, e.g. {inside[0]}=...")
    if key not in settings.settings_of(Config):
        raise AyfError(settings.unknown_key(key, Config))


def _check_value(override: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        readable = not OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        readable = False
    if not readable:
        raise AyfError(
            f"cannot read {override!r}: quote a text that holds commas or braces, as in \"key='a, b'\"; "
            "a list is key=[1,2]"
        )


def write(root: Path, config: Config, preset: str) -> Path:
    """Writes ``params.yaml`` beside and renames it, so that it is never half a file."""
    path = root / PARAMS_FILE
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(render(root, config, preset), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise AyfError(f"cannot write {path} ({error.strerror}): check the folder's permissions") from error
    return path


def named_preset(root: Path) -> str:
    """The preset that the header of ``params.yaml`` names, where it is still one; else the default preset."""
    path = root / PARAMS_FILE
    match = _HEADER.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return match["preset"] if match and match["preset"] in presets(root) else DEFAULT_PRESET


def differences(before: Config, after: Config) -> list[Change]:
    """The settings in which two configurations differ, in the order of the file."""
    old, new = before.to_dict(), after.to_dict()
    return [
        Change(key, settings.literal(settings.subtree(old, key)), settings.literal(settings.subtree(new, key)))
        for key in settings.settings_of(Config)
        if settings.subtree(old, key) != settings.subtree(new, key)
    ]


def render(root: Path, config: Config, preset: str) -> str:
    """The text of ``params.yaml``: a header with the command that gives it, every value, short comments."""
    command = ["ayf params use", f"preset={preset}"]
    for change in differences(from_preset(root, preset), config):
        value = settings.subtree(config.to_dict(), change.key)
        command.append(shlex.quote(f"{change.key}={_hydra_literal(value)}"))
    header = [
        "# Every setting of the experiment. Stages read it, DVC tracks it. Edit it, or use `ayf params set`.",
        "# Starting point and what was changed since:",
        "#   " + " ".join(command),
    ]
    return "\n".join([*header, "", *_group_lines(config.to_dict(), Config, "", set())]) + "\n"


def _hydra_literal(value: Any) -> str:
    # As YAML, but quotes inside a quoted text are escaped in Hydra's way.
    text = settings.literal(value)
    if isinstance(value, str) and text != value:
        return "'" + value.replace("'", "\\'") + "'"
    return text.replace(", ", ",")


def _group_lines(values: Mapping[str, Any], schema: type, indent: str, explained: set[type]) -> list[str]:
    """The lines of a group; a type that occurs again (``training``) is commented at its first place only."""
    hints = typing.get_type_hints(schema)
    comment_leaves = schema not in explained
    explained.add(schema)
    leaves = settings.settings_of(schema)
    texts = {
        field.name: f"{indent}{field.name}: {settings.literal(values[field.name])}"
        for field in dataclasses.fields(schema)
        if field.name in leaves
    }
    column = max((len(text) for text in texts.values()), default=0) + 2
    lines: list[str] = []
    for field in dataclasses.fields(schema):
        if field.name not in texts:
            lines.append(f"{indent}{field.name}:  # {field.metadata['help']}")
            lines += _group_lines(values[field.name], typing.cast(type, hints[field.name]), indent + "  ", explained)
        elif comment_leaves:
            lines.append(f"{texts[field.name]:<{column}}# {_comment(leaves[field.name])}")
        else:
            lines.append(texts[field.name])
    return lines


def _comment(leaf: settings.Setting) -> str:
    return f"{leaf.help} ({' | '.join(leaf.choices)})" if leaf.choices else leaf.help
