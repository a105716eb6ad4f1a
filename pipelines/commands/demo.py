"""`ayf demo`: pictures from the student that ships with the project."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pipelines.commands.sample import out_option, seed_option

STEPS = (1, 2, 4)
COLUMNS = 6


@click.command(short_help="Pictures from a small student that ships with the project; nothing is trained.")
@click.option("--guidance-scale", default=1.0, show_default=True, type=click.FloatRange(min=0.0), help="λ, 1 to 1.5.")
@seed_option
@out_option("demo.png")
def demo(guidance_scale: float, seed: int, out: Path) -> None:
    """Draw digits at 1, 2 and 4 network calls, the same noise in each column of pictures.

    The student was distilled and finished by this project's pipeline with the preset digits; pipelines/demo holds its
    weights and where they are from.
    """
    from ayf_core.sampling.generator import Generator
    from pipelines.stages.pictures import grid, labelled_columns, preview_inputs
    from pipelines.stages.sampling import check_picture_name

    check_picture_name(out)
    student = Generator.load(Path(__file__).parents[1] / "demo" / "model")
    noise, condition = preview_inputs(student, COLUMNS, seed)
    began = time.perf_counter()
    pictures = {
        f"{steps} step{'' if steps == 1 else 's'}": grid(
            student.sample(noise, steps, condition, guidance_scale=guidance_scale).x, COLUMNS
        )
        for steps in STEPS
    }
    seconds = time.perf_counter() - began
    out.parent.mkdir(parents=True, exist_ok=True)
    labelled_columns(pictures).save(out)
    steps = ", ".join(map(str, STEPS[:-1])) + f" and {STEPS[-1]}"
    click.echo(f"wrote {out}: {len(noise)} digits at {steps} steps, λ = {guidance_scale:g}, drawn in {seconds:.1f} s")
