"""`ayf sweep` and `ayf tune-sampling`: searches."""

from __future__ import annotations

import click


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


@click.command(short_help="Search settings: many trials, the best confirmed.")
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

    from pipelines.execution.attempt import reported_to_job
    from pipelines.settings.places import project_root
    from pipelines.settings.runtime import load_runtime

    root = project_root()
    with reported_to_job():
        # By name: `sweeps` builds on `pipelines`, not the other way round.
        import_module("sweeps.runner").run_named(root, name, load_runtime(root), resume=resume, anew=anew)


@click.command("tune-sampling", short_help="Find and store the best grid, γ and λ of a trained student.")
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

    from pipelines.settings.places import project_root

    root = project_root()
    # By name: `sweeps` builds on `pipelines`, not the other way round.
    search = import_module("sweeps.sampling_search").read_search(root / "sweeps" / "sampling.yaml")
    asked = {"steps": steps, "candidates": candidates, "metric": metric}
    changed = dataclasses.replace(search, **{name: value for name, value in asked.items() if value is not None})
    import_module("sweeps.tune_sampling").tune(root, model, changed)
