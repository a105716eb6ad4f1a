"""The ``ayf`` command. Heavy packages are imported inside the commands, so that ``ayf --help`` is instant."""

from __future__ import annotations

import os
from typing import Any

import click

from pipelines.commands import code, demo, generate, jobs, machine, params, plan, repro, sample, servers, sweep
from pipelines.environment import INTERRUPTED


class _OneLineErrors(click.Group):
    """Turns an AyfError of any command into ``error: ...`` and status 1; AYF_DEBUG=1 keeps the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from ayf_core.errors import AyfError

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\ninterrupted", err=True)
            ctx.exit(INTERRUPTED)
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
      ayf demo                                       pictures of a student that ships with the project
      ayf doctor                                     is everything here?
      ayf params use preset=digits                   choose a starting point
      ayf params set distill.emd.training.steps=500  change a setting
      ayf plan                                       what it will cost: memory, hours, disk
      ayf repro                                      build what changed, as `dvc repro` does
      ayf code status                                what a change of code rebuilds
      ayf ui                                         look at the runs
      ayf dashboard                                  look at figures over them
      ayf sample MODEL --steps 4 --labels 3,7        look at pictures
      ayf generate MODEL --out images.npz            50,000 of them, for another tool's FID
      ayf sweep distill                              search for better settings
      ayf tune-sampling MODEL                        find the best grid, γ and λ for a few steps
      ayf submit repro runtime=slurm                 the same pipeline on a Slurm cluster

    Settings that decide results live in params.yaml alone. Where things run (Ray or inline, workers, device)
    is a file of conf/runtime, chosen by the environment variable AYF_RUNTIME (default: local).
    AYF_DEBUG=1 shows the traceback behind an error line.
    """


for command in (
    params.params,
    plan.plan,
    repro.repro,
    code.code,
    machine.doctor,
    demo.demo,
    servers.ui,
    servers.serve,
    servers.dashboard,
    sample.sample,
    generate.generate,
    sweep.sweep,
    sweep.tune_sampling,
    jobs.submit,
    jobs.jobs_,
    jobs.logs,
    jobs.cancel,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
