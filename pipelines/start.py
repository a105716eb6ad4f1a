"""Where the commands begin: `python3 -m pipelines STAGE` and `ayf`. Packages are imported once Ctrl-C is in hand."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipelines.environment import one_line_at_ctrl_c, use_environment


def stage() -> int:
    """`python3 -m pipelines STAGE`: what the commands of dvc.yaml call."""
    arguments = sys.argv[1:]
    with one_line_at_ctrl_c(f"interrupted: run {arguments[0] if arguments else 'it'} again"):
        use_environment()
        main: Callable[[list[str]], int]
        if arguments[:1] == ["code"]:
            from pipelines.project.code import main
        else:
            from pipelines.execution.process import main
    return main(arguments)


def ayf() -> None:
    """The command `ayf`."""
    with one_line_at_ctrl_c("interrupted"):
        from pipelines.commands.main import main
    main()
