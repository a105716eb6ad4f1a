"""`ayf code`: which stages a change of code rebuilds, and saying that a change is harmless."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(short_help="Which stages a change of code rebuilds; accept a harmless change.")
def code() -> None:
    """See which stages a change of code rebuilds, and keep results where you know that it changes none.

    Comments, docstrings, formatting and files that a stage does not use rebuild nothing by themselves.
    """


@code.command("status", short_help="The stages that a change of code rebuilds, and the modules that changed.")
def status() -> None:
    """Name the stages that `dvc repro` will run again because of code, with the modules that changed.

    Stages that read their outputs run again too where these come out different.
    """
    from pipelines.execution.code_changes import code_changes

    found = code_changes(Path.cwd())
    for change in found:
        what = f"interrupted training ({change.interrupted.name}) begins anew" if change.interrupted else "runs again"
        click.echo(f"{change.stage}: {what}: {', '.join(change.modules)}")
    if found:
        click.echo("If you know that this changes no result: ayf code accept [STAGE...] --why TEXT")
    else:
        click.echo("No stage runs again because of its code.")


@code.command("accept", short_help="Say that changes of code are harmless: results and checkpoints are kept.")
@click.argument("stages", nargs=-1, metavar="[STAGE]...")
@click.option("--why", required=True, help="The reason, for whoever reads conf/accepted_code.yaml and MLflow.")
def accept(stages: tuple[str, ...], why: str) -> None:
    """Say that the changes `ayf code status` shows alter no result; of the named stages, or of all.

    Finished results are kept, and an interrupted training goes on from its checkpoint. The claim is written into
    conf/accepted_code.yaml: commit it. MLflow notes it with the runs.
    """
    from pipelines.execution.accepting import accept_changes

    for line in accept_changes(Path.cwd(), stages, why):
        click.echo(line)
