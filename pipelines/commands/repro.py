"""`ayf repro`: the chain, independent stages side by side."""

from __future__ import annotations

import click


@click.command(short_help="Build what changed, independent stages side by side.")
@click.argument("targets", nargs=-1)
@click.option("--jobs", type=click.IntRange(min=1), help="Stages at once.  [default: stages_at_once of the runtime]")
@click.option("--force", "-f", is_flag=True, help="Run the stages even where nothing changed.")
def repro(targets: tuple[str, ...], jobs: int | None, force: bool) -> None:
    """Do what `dvc repro` does, with stages that do not need each other side by side.

    TARGETS are stages of dvc.yaml: they and what they need are built; without one, everything. DVC's files are the
    same afterwards. Ctrl-C stops all stages with a checkpoint, a second one at once; the same command goes on.
    A failure lets the stages that run come to their end, and begins no other.
    """
    from pipelines.execution.repro import Stopped
    from pipelines.execution.repro import repro as run
    from pipelines.execution.shares import stages_at_once
    from pipelines.settings.places import project_root
    from pipelines.settings.runtime import load_runtime

    root = project_root()
    try:
        ran = run(root, targets, at_once=jobs or stages_at_once(load_runtime(root)), force=force, say=click.echo)
    except Stopped as stop:
        click.echo(str(stop), err=True)
        raise click.exceptions.Exit(128 + stop.signum) from None
    click.echo("Data and pipelines are up to date." if not ran else f"{ran} stages ran.")
