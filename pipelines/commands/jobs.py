"""The commands of `ayf` around jobs: submit, jobs, logs, cancel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipelines.slurm.submission import Submitted


@click.command(short_help="Run the pipeline, a stage or a sweep as a Slurm job.")
@click.argument("words", nargs=-1, required=True, metavar="[repro|STAGE|sweep NAME] [KEY=VALUE]...")
@click.option("--detach", is_flag=True, help="Do not follow the log.")
def submit(words: tuple[str, ...], detach: bool) -> None:
    """Submit `repro` (the whole pipeline), a stage of dvc.yaml or `sweep NAME` to Slurm, and follow its log.

    \b
    ayf submit repro runtime=slurm                          what conf/runtime/slurm.yaml asks for
    ayf submit repro runtime=slurm slurm.nodes=4 workers=32 settings of the runtime, for this job
    ayf submit distill@emd runtime=slurm preset=smoke       write params.yaml from a preset first
    ayf submit sweep distill runtime=slurm

    Ctrl-C, or closing the terminal, ends the following and not the job: see `ayf jobs`, `ayf logs`, `ayf cancel`.
    Pre-empted or out of time, the job takes a checkpoint, is queued again and goes on.
    """
    from ayf_core.errors import AyfError
    from pipelines.settings.places import project_root
    from pipelines.settings.runtime import load_runtime, with_runtime_values
    from pipelines.slurm import submission

    root = project_root()
    target = [word for word in words if "=" not in word]
    assignments = dict(word.split("=", 1) for word in words if "=" in word)
    runtime = load_runtime(root, assignments.pop("runtime", None))
    runtime, others = with_runtime_values(runtime, assignments)
    if runtime.mode != "slurm":
        raise AyfError("ayf submit hands a job to Slurm: name a runtime of mode slurm, e.g. runtime=slurm")
    submission.commands(root, target)  # a misspelt stage leaves params.yaml as it is
    if others:
        _write_params(root, others)
    made = submission.submit(root, target, runtime)
    nodes = f"{made.nodes} node{'s' if made.nodes > 1 else ''}"
    click.echo(f"job {made.job}: {made.what} on {nodes}; log: {made.log.relative_to(root)}")
    if detach:
        click.echo(f"`ayf logs {made.job} --follow` follows it, `ayf cancel {made.job}` ends it")
        return
    _follow(made)


@click.command("jobs", short_help="The jobs of this project and what became of them.")
def jobs_() -> None:
    """List what was submitted from this project, newest last, with Slurm's state."""
    from rich.console import Console
    from rich.table import Table

    from pipelines.settings.places import project_root
    from pipelines.slurm import submission

    known = submission.jobs(project_root())
    if not known:
        click.echo("nothing submitted yet: `ayf submit repro runtime=slurm` does")
        return
    states = submission.states(known)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("job", "what", "nodes", "submitted", "state"):
        table.add_column(heading)
    newest = {each.job: each for each in known}  # a cluster that was set up anew counts its jobs from 1 again
    for each in known:
        state = states[each.job].lower() if newest[each.job] is each else "unknown"
        table.add_row(each.job, each.what, str(each.nodes), each.submitted.replace("T", " "), state)
    Console().print(table)


@click.command(short_help="The log of a job.")
@click.argument("job", required=False)
@click.option("--follow", is_flag=True, help="Show what is added, with the progress, until the job ends.")
@click.option("--lines", default=50, show_default=True, type=click.IntRange(min=1), help="How many, from the end.")
def logs(job: str | None, follow: bool, lines: int) -> None:
    """Show the log of JOB (default: the newest)."""
    from pipelines.settings.places import project_root
    from pipelines.slurm import submission

    found = submission.find(project_root(), job)
    if follow:
        _follow(found)
    else:
        submission.show(found.log, lines)


@click.command(short_help="End a job.")
@click.argument("job")
def cancel(job: str) -> None:
    """End JOB; submitted again, its work goes on from the last checkpoint."""
    from pipelines.settings.places import project_root
    from pipelines.slurm import submission

    found = submission.find(project_root(), job)
    before = submission.cancel(found)
    if before in submission.ENDED:
        click.echo(f"job {job} has ended already ({before.lower()})")
    else:
        click.echo(f"job {job} is being ended; `ayf submit {found.what} ...` goes on from its checkpoints")


def _follow(submitted: Submitted) -> None:
    from pipelines.slurm import submission

    try:
        state = submission.follow(submitted)
    except KeyboardInterrupt:
        click.echo(f"\nno longer following; job {submitted.job} goes on (`ayf logs {submitted.job} --follow`)")
        return
    click.echo(f"job {submitted.job}: {state.lower()}")
    if state != "COMPLETED":
        raise click.exceptions.Exit(1)


def _write_params(root: Path, assignments: dict[str, str]) -> None:
    """As `ayf params use preset=NAME ...` or `ayf params set ...` would."""
    from pipelines.commands.params import replace_params
    from pipelines.settings.params_file import changed, from_preset, named_preset

    rest: Sequence[str] = [f"{key}={value}" for key, value in assignments.items() if key != "preset"]
    if "preset" in assignments:
        replace_params(root, from_preset(root, assignments["preset"], rest), assignments["preset"])
    else:
        replace_params(root, changed(root, rest), named_preset(root), in_place=True)
