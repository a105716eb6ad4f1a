"""`params.yaml` and the presets it starts from: written anew from a preset, changed in place, compared.

A change leaves everything else in the file as it is, a person's comments included; only the header, which names the
command that gives the same settings, is kept up to date.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.settings import Setting
from pipelines.settings import tree
from pipelines.settings.experiment import Config
from pipelines.settings.places import PARAMS_FILE, conf_folder
from pipelines.settings.reading import checked, read_params, use_plugins_of
from pipelines.settings.words import literal, nearest
from pipelines.settings.yaml_file import read_yaml

DEFAULT_PRESET = "digits"
_HEADER = re.compile(r"^#\s+ayf params use preset=(?P<preset>[\w-]+).*$", re.MULTILINE)
_OVERRIDE = re.compile(r"^(?P<key>[A-Za-z_][\w.]*)=(?P<value>.*)$", re.DOTALL)


@dataclass(frozen=True)
class Change:
    """One setting that differs; values are lines of YAML, None where the setting is not there."""

    key: str
    before: str | None
    after: str | None


# ------------------------------------------------------------------------------------------------- settings from


def presets(root: Path) -> list[str]:
    """The names that `ayf params use preset=NAME` takes."""
    return sorted(path.stem for path in (conf_folder(root) / "preset").glob("*.yaml"))


def from_preset(root: Path, preset: str, overrides: Sequence[str] = ()) -> Config:
    """The checked settings of a preset with overrides such as `teacher.training.steps=100`.

    Raises:
        AyfError: the preset or a key is unknown (the nearest is named), or a value is wrong.
    """
    known = presets(root)
    if preset not in known:
        guess = nearest(preset, known)
        hint = f"did you mean {guess}?" if guess else f"choose one of {', '.join(known)}"
        raise AyfError(f"no preset {preset}: {hint}")
    return _overridden(root, _composed(root, preset), overrides)


def changed(root: Path, overrides: Sequence[str]) -> Config:
    """The checked settings of `params.yaml` with overrides, one of which may be the remedy of a value that is wrong.

    Raises:
        AyfError: as `from_preset`, or the file cannot be read.
    """
    return _overridden(root, read_params(root).values, overrides)


def _composed(root: Path, preset: str) -> dict[str, Any]:
    """What Hydra makes of a preset and those it builds on.

    Not thread-safe (Hydra keeps a global): only for the driver process, never for a worker.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str((conf_folder(root) / "preset").resolve()), version_base="1.3"):
            composed = OmegaConf.to_container(compose(preset))
    except (HydraException, OmegaConfBaseException) as error:
        raise AyfError(f"preset {preset}: {' '.join(str(error).split())}") from error
    assert isinstance(composed, dict)
    return {str(name): value for name, value in composed.items()}


def _overridden(root: Path, values: dict[str, Any], overrides: Sequence[str]) -> Config:
    """Values with overrides, checked.

    Where another component is chosen, the settings of the one before are dropped and those of its own must be named.
    """
    given = dict(map(_read_override, overrides))
    use_plugins_of({**values, **{key: value for key, value in given.items() if key == "plugins"}}, root)
    for key, value in given.items():
        tree.with_value(values, key, value)
    keys = tree.keys_of(Config, values)
    for key in given:
        if key in keys.groups:
            raise AyfError(f"{key} is a group of settings: name one of them, e.g. {key}.{keys.inside(key)[0]}=...")
        if key not in keys.settings:
            raise AyfError(keys.unknown(key))
    values = tree.without_foreign(Config, values)
    needed = [line for line in tree.shape_problems(keys, values) if "is missing" in line]
    if needed:
        _explain_needed(given, keys, values)
    config, problems = checked(values, root)
    if config is None or problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise AyfError(problems[0] + more)
    return config


def _explain_needed(given: Mapping[str, Any], keys: tree.Keys, values: Mapping[str, Any]) -> None:
    """Raises AyfError naming in one line all that a newly chosen component needs."""
    for key, value in given.items():
        setting = keys.settings[key]
        group = key.rpartition(".")[0]
        if setting.room is None or not group:
            continue
        known = tree.flat(values)
        lacking = [name for name in keys.settings if name.startswith(f"{group}.") and name not in known]
        if lacking:
            names = " ".join(f"{name}=..." for name in lacking)
            raise AyfError(f"{key} = {literal(value)} has settings of its own: name them too: {names}")


def _read_override(override: str) -> tuple[str, Any]:
    """Key and value of `key=value`, the value in the grammar of Hydra's command line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    match = _OVERRIDE.match(override)
    if match is None:
        raise AyfError(f"cannot read {override!r}: write a setting as key=value, e.g. teacher.training.steps=500")
    if "${" in match["value"]:
        raise AyfError(f"{match['key']} would refer to another value with ${{...}}: write the value out")
    try:
        parsed = OverridesParser.create().parse_override(override)
        readable = not parsed.is_sweep_override()
    except HydraException:
        readable = False
    if not readable:
        raise AyfError(
            f"cannot read {override!r}: quote a text that holds commas or braces, as in \"key='a, b'\"; "
            "a list is key=[1,2]"
        )
    return match["key"], _unquoted(parsed.value())


def _unquoted(value: Any) -> Any:
    """Hydra's quoted texts as plain ones, in lists too."""
    if isinstance(value, list):
        return [_unquoted(item) for item in value]
    return value.text if hasattr(value, "text") else value


# --------------------------------------------------------------------------------------------------------- writing


def write(root: Path, config: Config, preset: str) -> Path:
    """Write `params.yaml` anew, with the comments that the settings declare."""
    return _replace(root / PARAMS_FILE, render(root, config, preset))


def update(root: Path, config: Config, preset: str) -> Path:
    """Change `params.yaml` to these settings in place: what does not change stays as a person wrote it.

    A file that is missing or cannot be read is written anew.
    """
    path = root / PARAMS_FILE
    try:
        file = read_yaml(path, "")
    except AyfError:
        return write(root, config, preset)
    before, after = tree.flat(file.values), tree.flat(config.to_dict())
    for key in before.keys() - after.keys():
        file.remove(key)
    for group in sorted(tree.groups(file.values) - tree.groups(config.to_dict()), key=len, reverse=True):
        file.remove(group)
    for key, value in after.items():
        if key not in before or before[key] != value or type(before[key]) is not type(value):
            file.set(key, value)
    text = file.text()
    header = f"#   {header_command(root, config, preset)}"
    return _replace(path, _HEADER.sub(lambda _: header, text, count=1) if _HEADER.search(text) else text)


def _replace(path: Path, text: str) -> Path:
    """Write beside and rename: the file is never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise AyfError(f"cannot write {path} ({error.strerror}): check the folder's permissions") from error
    return path


def named_preset(root: Path) -> str:
    """The preset that the header of `params.yaml` names, where it is still one; else the default preset."""
    path = root / PARAMS_FILE
    match = _HEADER.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return match["preset"] if match and match["preset"] in presets(root) else DEFAULT_PRESET


def differences(before: Config, after: Config) -> list[Change]:
    """The settings in which two experiments differ, in the order of the file."""
    old, new = tree.flat(before.to_dict()), tree.flat(after.to_dict())
    return [
        Change(key, literal(old[key]) if key in old else None, literal(new[key]) if key in new else None)
        for key in dict.fromkeys([*new, *old])
        if key not in old or key not in new or old[key] != new[key]
    ]


def header_command(root: Path, config: Config, preset: str) -> str:
    """The command that gives these settings."""
    command = ["ayf params use", f"preset={preset}"]
    values = tree.flat(config.to_dict())
    for change in differences(from_preset(root, preset), config):
        if change.after is not None:
            command.append(shlex.quote(f"{change.key}={_hydra_literal(values[change.key])}"))
    return " ".join(command)


def _hydra_literal(value: Any) -> str:
    # As YAML, but quotes inside a quoted text are escaped in Hydra's way.
    text = literal(value)
    if isinstance(value, str) and text != value:
        return "'" + value.replace("'", "\\'") + "'"
    return text.replace(", ", ",")


def render(root: Path, config: Config, preset: str) -> str:
    """The text of `params.yaml`: a header with the command that gives it, every value, short comments."""
    header = [
        "# Every setting of the experiment. Stages read it, DVC tracks it. Edit it, or use `ayf params set`.",
        "# Starting point and what was changed since:",
        f"#   {header_command(root, config, preset)}",
    ]
    values = config.to_dict()
    return "\n".join([*header, "", *_Renderer(tree.keys_of(Config, values)).lines(values)]) + "\n"


class _Renderer:
    """Lines of YAML with comments; a group that occurs again (`training`) is commented at its first place only."""

    def __init__(self, keys: tree.Keys) -> None:
        self._keys = keys
        self._explained: set[tuple[str, ...]] = set()

    def lines(self, values: Mapping[str, Any], prefix: str = "", indent: str = "") -> list[str]:
        leaves = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
        comment = tuple(leaves) not in self._explained
        if len(leaves) > 1:
            self._explained.add(tuple(leaves))
        texts = {name: f"{indent}{name}: {literal(value)}" for name, value in leaves.items()}
        column = max(map(len, texts.values()), default=0) + 2
        lines = []
        for name, value in values.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping):
                lines.append(f"{indent}{name}:  # {self._keys.groups[key]}")
                lines += self.lines(value, f"{key}.", indent + "  ")
            elif comment:
                lines.append(f"{texts[name]:<{column}}# {_comment(self._keys.settings[key])}")
            else:
                lines.append(texts[name])
        return lines


def _comment(setting: Setting) -> str:
    words = " | ".join(setting.words())
    return f"{setting.help} ({words})" if setting.help and words else setting.help or words
