"""`ayf plan`: what the chain will cost, before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.planning.estimate import Plan
    from pipelines.settings.experiment import Config
    from pipelines.settings.runtime import RuntimeConfig


_SHOWN = 0.002
"""Share of its memory from which on a part is worth a figure."""


@click.command(short_help="Memory, FLOPs, hours and disk of every stage, before anything starts.")
@click.argument("assignments", nargs=-1, metavar="[preset=NAME] [runtime=NAME] [KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Plain data for scripts: bytes, seconds, FLOPs.")
@click.option("--no-measure", is_flag=True, help="Time no steps on this machine: no hours without hardware=NAME.")
def plan(assignments: tuple[str, ...], as_json: bool, no_measure: bool) -> None:
    """Say what every stage will cost: parameters, FLOPs, memory of a worker by part, hours, disk. Nothing is started.

    \b
    ayf plan                                       params.yaml on this machine
    ayf plan preset=checkerboard                   another starting point
    ayf plan hardware=h100 workers=8               on cards that are not here, from their data sheets
    ayf plan teacher.network.width=768 seed=1      changed settings; params.yaml stays as it is
    ayf plan runtime=slurm micro_batch=16 --json   for scripts

    Memory and FLOPs are counted by taking each stage's own step with tensors that have no contents. On this machine
    seconds are measured by taking a few real steps; of a card in the table they follow from its data sheet and the
    share of it that is assumed, without communication between workers. Exit status 1 if something will not fit.
    """
    import shutil

    from pipelines.planning import fit
    from pipelines.planning.chain import Chain
    from pipelines.planning.estimate import plan as planned
    from pipelines.settings.places import project_root

    root = project_root()
    config, runtime = _settings(assignments)
    data = config.data.build().outline(config.seed)
    chain = Chain.of(config, data, runtime.teacher_workers > 0)
    made = planned(chain, runtime, measure=not no_measure, tell=_told(as_json))
    complaints = [fit.memory_complaint(each, made.device.title) for each in made.trainings]
    complaints.append(fit.disk_complaint(made, shutil.disk_usage(root).free))
    problems = [line for line in complaints if line]
    fit.remember(root, config, runtime, problems)
    if as_json:
        click.echo(json.dumps({**made.to_dict(), "problems": problems}, indent=2))
    else:
        _show(made)
        if runtime.hardware is None and (runtime.mode == "slurm" or runtime.address is not None):
            click.echo("this is the machine here: name a card of the cluster's, such as hardware=h100")
        for line in problems:
            click.echo(f"warning: {line}", err=True)
    if problems:
        raise click.exceptions.Exit(1)


def _settings(assignments: tuple[str, ...]) -> tuple[Config, RuntimeConfig]:
    """The experiment and the runtime that the command line asks for."""
    from ayf_core.errors import AyfError
    from pipelines.settings.params_file import changed, from_preset
    from pipelines.settings.places import project_root
    from pipelines.settings.runtime import load_runtime, with_runtime_values

    wrong = [word for word in assignments if "=" not in word]
    if wrong:
        raise AyfError(f"{wrong[0]!r} sets nothing: write KEY=VALUE, such as preset=digits or hardware=h100")
    root = project_root()
    given = dict(word.split("=", 1) for word in assignments)
    runtime, given = with_runtime_values(load_runtime(root, given.pop("runtime", None)), given)
    preset = given.pop("preset", None)
    overrides = [f"{key}={value}" for key, value in given.items()]
    return (changed(root, overrides) if preset is None else from_preset(root, preset, overrides)), runtime


def _told(quiet: bool) -> Callable[[str], None]:
    """Shows a person which stage is being looked at, where there is one to see it."""
    import sys

    if quiet or not sys.stderr.isatty():
        return lambda stage: None
    return lambda stage: click.echo(f"\r\x1b[Klooking at {stage}", nl=False, err=True)


def _show(made: Plan) -> None:
    import sys

    from rich.console import Console

    from pipelines.planning.fit import size

    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"on {made.device.title}: {size(made.device.memory)} a worker", highlight=False)
    console.print(_costs(made))
    console.print()
    console.print(_memory(made))
    for line in _sums(made):
        console.print(line, highlight=False, soft_wrap=True)


def _sums(made: Plan) -> Iterator[str]:
    """What all stages cost together, and where the figures are from."""
    from ayf_core.planning.hardware import BANDWIDTH_FRACTION, MATRIX_FRACTION
    from pipelines.planning.fit import size

    hours = [each.device_hours for each in made.trainings] + [each.hours for each in made.passes]
    known = _hours(sum(each for each in hours if each is not None))
    more = "" if None not in hours else " and what is not measured"
    yield f"all: {known} of a device{more}, {size(made.disk_kept)} on disk"
    if made.device.hardware is not None:
        yield (
            f"seconds assume {MATRIX_FRACTION:.0%} of the data sheet's rate for matrix products, "
            f"{BANDWIDTH_FRACTION:.0%} of its bandwidth for all else, and workers that do not wait for each other"
        )
    for source in sorted({each.source for each in made.trainings} - {""}):
        stages = [each.stage for each in made.trainings if each.source == source]
        yield f"seconds {source}: {', '.join(stages)}"


def _costs(made: Plan) -> Table:
    from pipelines.planning.fit import size

    table = _table(
        "stage", "parameters", "samples a pass", "FLOPs a step", "s a step", "steps", "hours", "device-hours", "disk"
    )
    for each in made.trainings:
        passes = f" x {each.micro_batches}" if each.micro_batches > 1 else ""
        workers = f" x {each.workers} workers" if each.workers > 1 else ""
        table.add_row(
            each.stage,
            f"{each.parameters:,}",
            f"{each.micro_batch}{passes}{workers}",
            f"{each.flops:.3g}",
            "?" if each.seconds is None else f"{each.seconds:.3g}",
            f"{each.steps:,}",
            _hours(each.hours),
            _hours(each.device_hours),
            f"{size(each.disk_kept)} (+ {size(each.disk_running)})",
        )
    for other in made.passes:
        disk = size(other.disk_kept) if other.disk_kept else ""
        table.add_row(other.stage, "", "", f"{other.flops:.3g} in all", "", "", _hours(other.hours), "", disk)
    return table


def _memory(made: Plan) -> Table:
    """Of a worker, by part; a part that no stage has is left out."""
    from pipelines.planning.fit import size

    parts = list(_parts(made))
    table = _table("memory of a worker", "at most", *parts)
    for each in made.trainings:
        about = "" if each.exact else "about "
        held = [size(each.memory[part]) if each.memory.get(part, 0) > _SHOWN * each.peak else "" for part in parts]
        table.add_row(each.stage, about + size(each.peak), *held)
    return table


def _parts(made: Plan) -> Iterator[str]:
    from ayf_core.planning.step import BUCKETS, GATHERED, PARTS

    for part in (*PARTS, BUCKETS, GATHERED):
        if any(each.memory.get(part, 0) > _SHOWN * each.peak for each in made.trainings):
            yield part


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", overflow="fold")
    return table


def _hours(hours: float | None) -> str:
    """`3.2 h`; minutes and seconds below one."""
    if hours is None:
        return "?"
    if hours >= 1:
        return f"{hours:,.3g} h"
    return f"{60 * hours:.2g} min" if 60 * hours >= 1 else f"{3600 * hours:.2g} s"
