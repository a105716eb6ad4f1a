"""Takes the settings of a run in MLflow back into the experiment: what a search found, the pipeline does."""

from __future__ import annotations

from pathlib import Path

from ayf_core.errors import AyfError
from pipelines.settings.experiment import Config
from pipelines.settings.reading import load_config, with_values
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.lineage import settings_of_run

NOT_ADOPTED = ("seed",)
"""A trial's seed is of its training alone; the experiment's also decides data and teacher."""


def adopted(root: Path, run: str, runtime: RuntimeConfig | None = None) -> tuple[str, Config]:
    """The run's name, and the checked settings of `root` with those of the run.

    Args:
        run: the name of a sweep, of which the best trial is taken, or (the start of) the id of a run.

    Raises:
        AyfError: there is no such run, it has no settings, or they do not agree with the rest of params.yaml.
    """
    name, values = settings_of_run(run, root, runtime)
    present = load_config(root)
    known = present.keys().settings
    taken = {key: value for key, value in values.items() if key in known and key not in NOT_ADOPTED}
    if not taken:
        raise AyfError(f"the run {name} has no settings of params.yaml: name a trial of a sweep, or a stage's run")
    try:
        return name, with_values(present, taken)
    except AyfError as error:
        raise AyfError(f"the settings of {name} do not go with the present params.yaml: {error}") from error
