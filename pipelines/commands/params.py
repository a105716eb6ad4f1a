"""`ayf params`: write, check and compare params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipelines.settings.experiment import Config
    from pipelines.settings.params_file import Change

FEWEST_STEPS = 100
"""A teacher trained for fewer is not past its warm-up in any preset that learns."""


@click.group()
def params() -> None:
    """Write, check and compare params.yaml, the one file of settings.

    \b
    ayf params use preset=checkerboard seed=3      start from a preset, with changes
    ayf params set teacher.training.steps=500      change settings
    ayf params check                               is the file valid? names every problem
    ayf params diff                                what differs from the preset it came from
    ayf params adopt distill                       take over the best settings of a sweep
    """


@params.command("use", short_help="Write params.yaml from a preset, e.g. preset=digits seed=3.")
@click.argument("assignments", nargs=-1, metavar="preset=NAME [KEY=VALUE]...")
def params_use(assignments: tuple[str, ...]) -> None:
    """Write params.yaml from a preset and changes to it, and print what changed in the file."""
    from ayf_core.errors import AyfError
    from pipelines.settings.params_file import from_preset, presets
    from pipelines.settings.places import project_root

    root = project_root()
    names = [text.removeprefix("preset=") for text in assignments if text.startswith("preset=")]
    if len(names) != 1:
        raise AyfError(f"name one preset as preset=NAME, one of {', '.join(presets(root))}")
    overrides = [text for text in assignments if not text.startswith("preset=")]
    replace_params(root, from_preset(root, names[0], overrides), names[0])


@params.command("set", short_help="Change settings of params.yaml, e.g. seed=3.")
@click.argument("assignments", nargs=-1, required=True, metavar="KEY=VALUE...")
def params_set(assignments: tuple[str, ...]) -> None:
    """Change settings of params.yaml and print what changed. All else in it stays, your own comments too."""
    from pipelines.settings.params_file import changed, named_preset
    from pipelines.settings.places import project_root

    root = project_root()
    replace_params(root, changed(root, assignments), named_preset(root), in_place=True)


@params.command("adopt", short_help="Take over the settings of a sweep's best trial, or of any run.")
@click.argument("run")
def params_adopt(run: str) -> None:
    """Write the settings of RUN into params.yaml and print what changed; the next `dvc repro` rebuilds with them.

    RUN is the name of a sweep (its best trial), or the id, or the start of the id, of a run in MLflow: of a trial, of
    a sweep, or of a stage.
    """
    from pipelines.commands.adopt import adopted
    from pipelines.settings.params_file import named_preset
    from pipelines.settings.places import project_root
    from pipelines.settings.runtime import load_runtime

    root = project_root()
    source, config = adopted(root, run, load_runtime(root))
    click.echo(f"settings of {source}")
    replace_params(root, config, named_preset(root), in_place=True)


@params.command("check", short_help="Check params.yaml; names every problem.")
def params_check() -> None:
    """Check params.yaml: keys, types, ranges and settings that must agree. Exit status 1 if not valid.

    Says again what the last `ayf plan` of these settings found too large.
    """
    from pipelines.planning.fit import remembered
    from pipelines.project.undeclared import undeclared
    from pipelines.settings.params_file import differences, from_preset, named_preset
    from pipelines.settings.places import project_root
    from pipelines.settings.reading import read_config

    root = project_root()
    config, problems = read_config(root)
    problems += undeclared(root)
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    if config is None or problems:
        raise click.exceptions.Exit(1)
    preset = named_preset(root)
    count = len(differences(from_preset(root, preset), config))
    click.echo(f"params.yaml is valid: preset {preset}" + (f", {_settings(count)} changed" if count else ""))
    for line in remembered(root, config):
        click.echo(f"warning: {line}", err=True)


@params.command("diff", short_help="What differs between a preset and params.yaml.")
@click.argument("preset", required=False)
def params_diff(preset: str | None) -> None:
    """Show what params.yaml changes of PRESET (default: the preset it was written from)."""
    from pipelines.settings.params_file import differences, from_preset, named_preset
    from pipelines.settings.places import project_root
    from pipelines.settings.reading import load_config

    root = project_root()
    preset = (preset or named_preset(root)).removeprefix("preset=")
    changes = differences(from_preset(root, preset), load_config(root))
    if not changes:
        click.echo(f"params.yaml has the settings of preset {preset}")
        return
    click.echo(f"params.yaml changes {_settings(len(changes))} of preset {preset}:")
    _print_changes(changes)


def replace_params(root: Path, config: Config, preset: str, *, in_place: bool = False) -> None:
    """Write params.yaml, anew or in place, and print what changed in it."""
    from ayf_core.errors import AyfError
    from pipelines.settings.params_file import update, write
    from pipelines.settings.reading import read_config

    try:
        before, _ = read_config(root)
    except AyfError:
        before = None
    (update if in_place else write)(root, config, preset)
    _say_changes(before, config, preset)
    steps = config.teacher.training.steps
    if steps < FEWEST_STEPS:
        click.echo(
            f"note: the teacher trains {steps} steps, too few to learn anything: a run that tries every stage; its "
            "pictures are noise and its figures compare nothing"
        )


def _say_changes(before: Config | None, config: Config, preset: str) -> None:
    from pipelines.settings.params_file import differences

    if before is None:
        click.echo(f"params.yaml written from preset {preset} (there was no readable one before)")
        return
    changes = differences(before, config)
    click.echo(f"params.yaml: {_settings(len(changes))} changed" if changes else "params.yaml: no setting changed")
    _print_changes(changes)


def _settings(count: int) -> str:
    return f"{count} setting{'' if count == 1 else 's'}"


def _print_changes(changes: list[Change]) -> None:
    width = max((len(change.key) for change in changes), default=0)
    for change in changes:
        before, after = (value if value is not None else "(not set)" for value in (change.before, change.after))
        click.echo(f"  {change.key:<{width}}  {before} -> {after}")
