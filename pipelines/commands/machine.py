"""`ayf doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import click


@click.command(short_help="What this machine has, and what is missing.")
def doctor() -> None:
    """Check Python, packages, devices, memory, disk, git, DVC, params.yaml, the MLflow store and ports.

    Exit status 1 if something required is missing.
    """
    from rich.console import Console
    from rich.table import Table

    from pipelines.commands.doctor import examine, something_required_is_missing, table_rows

    checks = examine()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "what", "found"):
        table.add_column(heading, overflow="fold")
    for row in table_rows(checks):
        table.add_row(*row)
    Console().print(table)
    if something_required_is_missing(checks):
        raise click.exceptions.Exit(1)
