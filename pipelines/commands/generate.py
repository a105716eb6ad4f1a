"""`ayf generate`: images from a model by the thousand."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.sample import drawing_options
from pipelines.environment import INTERRUPTED


@click.command(short_help="Images by the thousand: a folder, an .npz or a tar.")
@click.argument("model")
@click.option("--count", default=50_000, show_default=True, type=click.IntRange(min=1), help="Images.")
@click.option("--labels", help="balanced, data (as often as there), 3,7 (in turn), or a file of labels.")
@click.option("--weak-model", help="What guides a teacher, for --guidance-scale (autoguidance).")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(min=1), help="Images at once.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A folder of PNG, FILE.npz or FILE.tar (WebDataset)."
)
@drawing_options
def generate(
    model: str,
    count: int,
    labels: str | None,
    weak_model: str | None,
    batch_size: int,
    out: Path,
    steps: int,
    guidance_scale: float | None,
    seed: int,
    ema_std: float | None,
    gamma: float | None,
    time_grid: str | None,
    untuned: bool,
) -> None:
    """Draw --count images of MODEL into --out, on the workers of the runtime.

    MODEL is a model folder, an output of the pipeline, or an MLflow model URI. Image i of a seed is the same whatever
    the number of workers; interrupted, the same command goes on. Tools that measure FID read what comes out.
    """
    from pipelines.settings.places import find_project
    from pipelines.settings.runtime import RuntimeConfig, load_runtime
    from pipelines.stages.generate import generate as draw

    # A model folder needs no project around it.
    project = find_project(Path.cwd())
    runtime = RuntimeConfig(mode="inline") if project is None else load_runtime(project)
    try:
        how = draw(
            model,
            project or Path.cwd(),
            runtime,
            out,
            count=count,
            evaluations=steps,
            labels=labels,
            seed=seed,
            weak_model=weak_model,
            ema_std=ema_std,
            batch_size=batch_size,
            untuned=untuned,
            guidance_scale=guidance_scale,
            gamma=gamma,
            time_grid=time_grid,
        )
    except KeyboardInterrupt:
        click.echo("\ninterrupted: the same command goes on", err=True)
        raise SystemExit(INTERRUPTED) from None
    click.echo(f"wrote {out}: {count:,} images, {steps} step{'' if steps == 1 else 's'}, {how}")
