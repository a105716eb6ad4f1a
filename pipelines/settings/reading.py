"""Reads `params.yaml` and checks it, whole and before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.registry import plugins, use_plugins
from pipelines.settings import tree
from pipelines.settings.agreement import disagreements
from pipelines.settings.experiment import Config
from pipelines.settings.places import PARAMS_FILE
from pipelines.settings.yaml_file import YamlFile, read_yaml


def load_config(root: Path) -> Config:
    """The checked settings of the project at `root`; its plug-ins are in use from then on.

    Raises:
        AyfError: the first thing wrong with `params.yaml`, and how many more there are.
    """
    config, problems = read_config(root)
    if config is None or problems:
        more = f" (and {len(problems) - 1} more: see `ayf params check`)" if len(problems) > 1 else ""
        raise AyfError(problems[0] + more)
    return config


def read_config(root: Path) -> tuple[Config | None, list[str]]:
    """`params.yaml` and a line for everything wrong with it; no config where it could not be typed.

    Raises:
        AyfError: there is no such file, or it is not YAML.
    """
    file = read_params(root)
    values = file.values
    try:
        use_plugins_of(values, root)
    except AyfError as error:
        return None, [file.located(str(error))]
    config, problems = checked(values, root)
    return config, [file.located(problem) for problem in problems]


def read_params(root: Path) -> YamlFile:
    """`params.yaml`, unchecked.

    Raises:
        AyfError: there is no such file, or it is not YAML.
    """
    return read_yaml(root / PARAMS_FILE, "write one with `ayf params use preset=digits`")


def use_plugins_of(values: Mapping[str, Any], root: Path) -> None:
    """Put the plug-ins that settings name in use, beside those that are; what is no list is left to the check of types.

    Raises:
        AyfError: one of them cannot be found.
    """
    named = values.get("plugins")
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        return
    more = [name for name in named if name not in plugins()]
    if more:
        use_plugins([*plugins(), *more], root)


def checked(values: Mapping[str, Any], root: Path | None = None) -> tuple[Config | None, list[str]]:
    """Plain values as a `Config`, and a line for everything wrong with them, which begins with the key.

    Args:
        root: the project, to look whether the folders that settings name are there; None does not look.
    """
    problems = tree.problems_of(Config, values)
    if problems:  # disagreements of values that are wrong by themselves would only repeat the complaint
        return None, problems
    config = tree.build(Config, values)
    return config, disagreements(config, root)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of settings with other values, by dotted keys.

    Raises:
        AyfError: a key is unknown, a value is wrong, or the settings no longer agree.
    """
    changed = config.to_dict()
    for key, value in values.items():
        tree.with_value(changed, key, value)
    made, problems = checked(tree.without_foreign(Config, changed))
    if made is None or problems:
        raise AyfError(problems[0])
    return made
