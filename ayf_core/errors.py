"""The one error a person can mend, and the import of packages that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType


class AyfError(Exception):
    """A problem the user can mend: one line that names the thing and the remedy."""


class Preempted(AyfError):
    """A training that was asked to stop has done so at `step`, with a checkpoint of it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step} with a checkpoint: the same command goes on from it")
        self.step = step

    def __reduce__(self) -> tuple[type[Preempted], tuple[int]]:
        return Preempted, (self.step,)  # the usual way would make it anew from its message


def require(module: str, *, extra: str, needed_for: str) -> ModuleType:
    """Import `module`, or say which extra of the package brings it.

    `ayf_core` alone needs torch, numpy, safetensors and jaxtyping only; everything else is imported where it is used.

    Raises:
        AyfError: the module is not installed (a module that is there but broken raises its own error).
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.split(".")[0] != module.split(".")[0]:
            raise
        raise AyfError(
            f"{needed_for} needs the package {missing.split('.')[0]}, which is not installed: "
            f"pip install 'align-your-flow[{extra}]'"
        ) from error
