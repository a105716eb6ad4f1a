"""Settings that no stage of dvc.yaml declares: a change of one would rebuild nothing, and silently have no effect."""

from __future__ import annotations

from pathlib import Path

from pipelines.project.declarations import read_declarations, read_params
from pipelines.settings import tree
from pipelines.settings.experiment import Config
from pipelines.settings.words import unknown_key

NOT_DECLARED = ("plugins", "distill.objectives", "distill.without_teacher", "evaluation.models")
"""Settings that say which stages there are: the stages themselves do not depend on them."""


def undeclared(root: Path) -> list[str]:
    """A line for every setting that no stage of dvc.yaml declares, and for every declared one that is none.

    Without this, a change of such a setting would rebuild nothing and silently have no effect.
    """
    if not (root / "dvc.yaml").is_file():
        return []
    stages = read_declarations(root).values()
    keys = tree.keys_of(Config, read_params(root))
    problems = {
        f"dvc.yaml: stage {stage.base}: {unknown_key(key, [*keys.settings, *keys.groups])}": None
        for stage in stages
        for key in stage.params
        if key not in keys.settings and key not in keys.groups
    }
    declared = {key for stage in stages for key in stage.params} | set(NOT_DECLARED)
    for key in keys.settings:
        if not any(key == name or key.startswith(f"{name}.") for name in declared):
            problems[f"dvc.yaml: no stage declares {key}: add it to the params of the stage it changes"] = None
    return list(problems)
