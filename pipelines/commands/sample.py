"""`ayf sample`: pictures from a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


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


seed_option = click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the noise.")


def out_option(default: str) -> Callable[[F], F]:
    """Where the picture is written."""
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("--out", default=default, show_default=True, type=kind, help="The PNG file to write.")


def drawing_options(command: F) -> F:
    """How samples are drawn: the options that `ayf sample` and `ayf generate` share."""
    for option in reversed(
        (
            click.option("--steps", default=4, show_default=True, type=click.IntRange(min=1), help="Sampling steps."),
            click.option("--guidance-scale", type=click.FloatRange(min=0.0), help="λ; 1 = unguided.  [default: tuned]"),
            seed_option,
            click.option(
                "--ema-std", type=click.FloatRange(min=0.0), help="Another EMA width, rebuilt from snapshots."
            ),
            click.option(
                "--gamma",
                type=click.FloatRange(0.0, 1.0),
                help="γ-sampling: 0 = deterministic, 1 = fresh noise at every step.  [default: tuned]",
            ),
            click.option(
                "--grid", "time_grid", help="Of times: uniform, shifted:2.0 or polynomial:0.7.  [default: tuned]"
            ),
            click.option(
                "--untuned", is_flag=True, help="Pass over tuned settings: uniform, deterministic, least λ learnt."
            ),
        )
    ):
        command = option(command)
    return command


@click.command(short_help="A grid of pictures from a trained or registered model.")
@click.argument("model")
@click.option("--labels", callback=_read_labels, help="Classes, one row each, e.g. 3,7.  [default: all]")
@click.option("--count", default=10, show_default=True, type=click.IntRange(min=1), help="Samples a class.")
@drawing_options
@out_option("grid.png")
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
    from pipelines.settings.places import find_project
    from pipelines.stages.sampling import sample_grid

    # A model folder needs no project around it.
    root = find_project(Path.cwd()) or Path.cwd()
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
