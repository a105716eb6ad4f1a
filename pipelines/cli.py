"""The ``ayf`` command. Heavy packages are imported inside the commands, so that ``ayf --help`` is instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cluster import commands as cluster_commands

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.params import Change


class _OneLineErrors(click.Group):
    """Turns an AyfError of any command into ``error: ...`` and status 1; AYF_DEBUG=1 keeps the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from ayf_core.errors import AyfError

        try:
            return super().invoke(ctx)
        except AyfError as error:
            if os.environ.get("AYF_DEBUG", "") not in ("", "0"):
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Train, distil and evaluate flow maps (Align Your Flow).

    A flow map jumps from noise to data in one or a few steps. The pipeline (`dvc repro`) trains a
    teacher, distils it into flow maps, finishes one adversarially and measures them all; `ayf` does what is
    left: settings, a check of the machine, the runs, pictures.

    \b
    A typical session:
      ayf doctor                                     is everything here?
      ayf params use preset=digits                   choose a starting point
      ayf params set distill.emd.training.steps=500  change a setting
      dvc repro                                      build what changed
      ayf ui                                         look at the runs
      ayf dashboard                                  look at figures over them
      ayf sample MODEL --steps 4 --labels 3,7        look at pictures
      ayf sweep distill                              search for better settings
      ayf tune-sampling MODEL                        find the best grid, γ and λ for a few steps
      ayf submit repro runtime=slurm                 the same pipeline on a Slurm cluster

    Settings that decide results live in params.yaml alone. Where things run (Ray or inline, workers, device)
    is a file of conf/runtime, chosen by the environment variable AYF_RUNTIME (default: local).
    AYF_DEBUG=1 shows the traceback behind an error line.
    """


# --- settings -----------------------------------------------------------------------------------------


@main.group()
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
    from pipelines.config import project_root
    from pipelines.params import from_preset, presets

    root = project_root()
    names = [text.removeprefix("preset=") for text in assignments if text.startswith("preset=")]
    if len(names) != 1:
        raise AyfError(f"name one preset as preset=NAME, one of {', '.join(presets(root))}")
    overrides = [text for text in assignments if not text.startswith("preset=")]
    replace_params(root, from_preset(root, names[0], overrides), names[0])


@params.command("set", short_help="Change settings of params.yaml, e.g. seed=3.")
@click.argument("assignments", nargs=-1, required=True, metavar="KEY=VALUE...")
def params_set(assignments: tuple[str, ...]) -> None:
    """Change settings of params.yaml and print what changed. Your own comments in it are not kept."""
    from pipelines.config import project_root
    from pipelines.params import changed, named_preset

    root = project_root()
    replace_params(root, changed(root, assignments), named_preset(root))


@params.command("adopt", short_help="Take over the settings of a sweep's best trial, or of any run.")
@click.argument("run")
def params_adopt(run: str) -> None:
    """Write the settings of RUN into params.yaml and print what changed; the next `dvc repro` rebuilds with them.

    RUN is the name of a sweep (its best trial), or the id, or the start of the id, of a run in MLflow: of a trial, of
    a sweep, or of a stage.
    """
    from pipelines.adopt import adopted
    from pipelines.config import project_root
    from pipelines.params import named_preset
    from pipelines.runtime import load_runtime

    root = project_root()
    source, config = adopted(root, run, load_runtime(root))
    click.echo(f"settings of {source}")
    replace_params(root, config, named_preset(root))


@params.command("check", short_help="Check params.yaml; names every problem.")
def params_check() -> None:
    """Check params.yaml: keys, types, ranges and settings that must agree. Exit status 1 if not valid."""
    from pipelines.config import project_root, read_config
    from pipelines.params import differences, from_preset, named_preset, undeclared

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


@params.command("diff", short_help="What differs between a preset and params.yaml.")
@click.argument("preset", required=False)
def params_diff(preset: str | None) -> None:
    """Show what params.yaml changes of PRESET (default: the preset it was written from)."""
    from pipelines.config import load_config, project_root
    from pipelines.params import differences, from_preset, named_preset

    root = project_root()
    preset = (preset or named_preset(root)).removeprefix("preset=")
    changes = differences(from_preset(root, preset), load_config(root))
    if not changes:
        click.echo(f"params.yaml has the settings of preset {preset}")
        return
    click.echo(f"params.yaml changes {_settings(len(changes))} of preset {preset}:")
    _print_changes(changes)


def replace_params(root: Path, config: Config, preset: str) -> None:
    """Write params.yaml and print what changed in it."""
    from ayf_core.errors import AyfError
    from pipelines.config import read_config
    from pipelines.params import differences, write

    try:
        before, _ = read_config(root)
    except AyfError:
        before = None
    write(root, config, preset)
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
        click.echo(f"  {change.key:<{width}}  {change.before} -> {change.after}")


# --- the machine --------------------------------------------------------------------------------------


@main.command(short_help="What this machine has, and what is missing.")
def doctor() -> None:
    """Check Python, packages, devices, memory, disk, git, DVC, params.yaml, the MLflow store and ports.

    Exit status 1 if something required is missing.
    """
    from rich.console import Console
    from rich.table import Table

    from pipelines.doctor import examine, something_required_is_missing, table_rows

    checks = examine()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "what", "found"):
        table.add_column(heading, overflow="fold")
    for row in table_rows(checks):
        table.add_row(*row)
    Console().print(table)
    if something_required_is_missing(checks):
        raise click.exceptions.Exit(1)


@main.command(short_help="The MLflow pages over the project's runs.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def ui(port: int, host: str) -> None:
    """Serve the MLflow pages over the project's store, until Ctrl-C.

    Prints links to the pages worth opening: all runs, evaluations, the newest sweep, with columns chosen and the
    best first. Only this machine can open them unless --host says otherwise.
    """
    from pipelines.config import project_root
    from pipelines.ports import require_free_port
    from pipelines.runtime import load_runtime
    from pipelines.saved_views import links
    from pipelines.ui import become, server_command, store_to_serve, warn_if_reachable

    root = project_root()
    require_free_port(host, port)
    warn_if_reachable(host, port, "read, change and delete every run")
    # Made ready before the server starts: two processes that both create the schema of a fresh store crash.
    store = store_to_serve(root, load_runtime(root), host, port)
    address = f"http://{host}:{port}"
    click.echo(f"MLflow on {address} in a few seconds; Ctrl-C stops it")
    for words, page in links(store, address):
        click.echo(f"  {words}: {page}")
    become(*server_command(store, host, port))


@main.command(short_help="An MLflow server for a team, on PostgreSQL.")
@click.option("--database", metavar="URL", help="postgresql://USER@HOST/NAME, no password.  [default: AYF_DATABASE]")
@click.option("--artefacts", metavar="PLACE", help="Folder, or s3://... and the like.  [default: mlruns/served]")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--name", "names", multiple=True, help="A name that others reach this machine by; may be repeated.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Processes that answer.")
def serve(
    database: str | None, artefacts: str | None, port: int, host: str, names: tuple[str, ...], workers: int
) -> None:
    """Serve MLflow over a PostgreSQL database until Ctrl-C, for runs of many machines.

    The database's schema is created or upgraded first. Artefacts go through the server, so whoever trains needs no
    access to where they lie. The password comes from ~/.pgpass, PGPASSWORD, or the address in AYF_DATABASE.
    """
    from pipelines import server
    from pipelines.config import project_root
    from pipelines.ports import require_free_port
    from pipelines.ui import become, warn_if_reachable

    address = server.database_address(database)
    place = server.artefact_place(project_root(), artefacts)
    require_free_port(host, port, "ayf serve")
    warn_if_reachable(host, port, "read, change and delete every run and its artefacts")
    server.migrate(address)
    click.echo(f"MLflow over {server.shown(address)}, artefacts in {place}, in a few seconds; Ctrl-C stops it")
    click.echo(f"To send runs there: tracking_uri: http://{host}:{port} in a file of conf/runtime")
    become(*server.command(address, place, host, port, workers, names))


@main.command(short_help="Figures over the project's runs, served or as one file.")
@click.option("--port", default=8050, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--export", type=click.Path(dir_okay=False, path_type=Path), help="Write one HTML file instead.")
def dashboard(port: int, host: str, export: Path | None) -> None:
    """Serve the dashboard over the project's runs until Ctrl-C, or write it as one file that opens offline.

    Quality, guidance, samples, training, sweeps and lineage. Only this machine can open it unless --host says
    otherwise.
    """
    from ayf_core.errors import AyfError
    from dashboards.store import StoreError
    from pipelines.config import project_root
    from pipelines.ports import require_free_port
    from pipelines.runtime import load_runtime
    from pipelines.store import tracking_uri
    from pipelines.ui import warn_if_reachable

    root = project_root()
    if export is None:
        require_free_port(host, port, "ayf dashboard")
    store = tracking_uri(root, load_runtime(root))
    try:
        if export is not None:
            from dashboards.page import store_page, write

            write(export, store_page(store))
            click.echo(f"wrote {export}")
            return
        warn_if_reachable(host, port, "read every run")
        from dashboards.app import build, serve

        app = build(store)
    except StoreError as error:
        raise AyfError(str(error)) from error
    click.echo(f"dashboard on http://{host}:{port}; Ctrl-C stops it")
    serve(app, host, port)


# --- pictures -----------------------------------------------------------------------------------------


def _read_labels(ctx: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        labels = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: give whole numbers with commas between them, e.g. 3,7") from error
    if min(labels) < 0:
        raise click.BadParameter(f"{text!r}: labels are 0 or more")
    return labels


@main.command(short_help="A grid of pictures from a trained or registered model.")
@click.argument("model")
@click.option("--steps", default=4, show_default=True, type=click.IntRange(min=1), help="Sampling steps.")
@click.option("--labels", callback=_read_labels, help="Classes, one row each, e.g. 3,7.  [default: all]")
@click.option("--guidance-scale", type=click.FloatRange(min=0.0), help="λ; 1 = unguided.  [default: tuned]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the noise.")
@click.option("--count", default=10, show_default=True, type=click.IntRange(min=1), help="Samples a class.")
@click.option("--ema-std", type=click.FloatRange(min=0.0), help="Another EMA width, rebuilt from snapshots.")
@click.option(
    "--gamma",
    type=click.FloatRange(0.0, 1.0),
    help="γ-sampling: 0 = deterministic, 1 = fresh noise at every step.  [default: tuned]",
)
@click.option("--grid", "time_grid", help="Of times: uniform, shifted:2.0 or polynomial:0.7.  [default: tuned]")
@click.option("--untuned", is_flag=True, help="Pass over tuned settings: uniform, deterministic, least λ learnt.")
@click.option(
    "--out",
    default="grid.png",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The PNG file to write.",
)
def sample(
    model: str,
    steps: int,
    labels: list[int] | None,
    guidance_scale: float | None,
    seed: int,
    count: int,
    ema_std: float | None,
    gamma: float | None,
    time_grid: str | None,
    untuned: bool,
    out: Path,
) -> None:
    """Draw samples from MODEL and write them as a PNG grid.

    MODEL is a model folder, an output of the pipeline, or an MLflow model URI such as models:/NAME@ALIAS. Settings
    that `ayf tune-sampling` stored with it for this number of steps are used; without, steps are uniform and
    deterministic, with the least λ that the model learnt.
    """
    from ayf_core.errors import AyfError
    from pipelines.config import project_root
    from pipelines.sampling import sample_grid

    try:
        root = project_root()
    except AyfError:
        # A model folder needs no project around it.
        root = Path.cwd()
    how = sample_grid(
        model,
        root,
        steps=steps,
        labels=labels,
        guidance_scale=guidance_scale,
        seed=seed,
        count=count,
        ema_std=ema_std,
        gamma=gamma,
        time_grid=time_grid,
        untuned=untuned,
        out=out,
    )
    click.echo(f"wrote {out}: {steps} step{'' if steps == 1 else 's'}, {how}")


def _read_steps(ctx: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: give whole numbers with commas between them, e.g. 2,4,8") from error
    if min(steps) < 1 or len(set(steps)) < len(steps):
        raise click.BadParameter(f"{text!r}: each number once, 1 or more")
    return steps


@main.command(short_help="Search settings: many trials, the best confirmed.")
@click.argument("name")
@click.option("--resume", is_flag=True, help="Go on with the newest sweep of that name, after any interruption.")
@click.option(
    "--new",
    "anew",
    is_flag=True,
    help="Begin another although the newest was interrupted; with --resume: only if none was.",
)
def sweep(name: str, resume: bool, anew: bool) -> None:
    """Run the search that sweeps/NAME.yaml describes, and say which settings are best.

    Trials train with the stages' own code on the present teacher and latents, several at once where they fit; how
    many and on what is in conf/runtime (workers, trial_threads, trials_at_once). All is in MLflow, under one run.

    \b
    ayf sweep distill                 search
    ayf sweep distill --resume        go on after Ctrl-C, a kill, a reboot
    ayf params adopt distill          write the best settings into params.yaml; then dvc repro
    """
    from importlib import import_module

    from pipelines.cluster.rendezvous import told_to_job
    from pipelines.config import project_root
    from pipelines.runtime import load_runtime

    root = project_root()
    with told_to_job():
        # By name: `sweeps` builds on `pipelines`, not the other way round.
        import_module("sweeps.runner").run_named(root, name, load_runtime(root), resume=resume, anew=anew)


@main.command("tune-sampling", short_help="Find and store the best grid, γ and λ of a trained student.")
@click.argument("model")
@click.option("--steps", callback=_read_steps, help="Numbers of steps, e.g. 2,4,8.  [default: the file's]")
@click.option("--candidates", type=click.IntRange(min=1), help="Settings tried for each.  [default: the file's]")
@click.option("--metric", help="A measure of `evaluate`, e.g. fd.  [default: the file's]")
def tune_sampling(model: str, steps: list[int] | None, candidates: int | None, metric: str | None) -> None:
    """Search time grid, γ and λ for each number of steps of MODEL, a trained student; nothing is trained.

    The space is in sweeps/sampling.yaml. The best settings are measured again on held-out seeds, beside uniform
    deterministic steps, and stored with the model only where these confirm a gain; `ayf sample` then uses them.
    Interrupted, it goes on where it was when the command is given again.
    """
    import dataclasses
    from importlib import import_module

    from pipelines.config import project_root

    root = project_root()
    # By name: `sweeps` builds on `pipelines`, not the other way round.
    search = import_module("sweeps.sampling_search").read_search(root / "sweeps" / "sampling.yaml")
    asked = {"steps": steps, "candidates": candidates, "metric": metric}
    changed = dataclasses.replace(search, **{name: value for name, value in asked.items() if value is not None})
    import_module("sweeps.tune_sampling").tune(root, model, changed)


# --- jobs ---------------------------------------------------------------------------------------------

for command in (cluster_commands.submit, cluster_commands.jobs_, cluster_commands.logs, cluster_commands.cancel):
    main.add_command(command)


if __name__ == "__main__":
    main()
