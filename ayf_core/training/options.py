"""How a training's loop is run."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop is run: the result is the same, up to rounding, whatever these are.

    Args:
        micro_batch: most samples in one forward pass on one worker; accumulation follows from it.
        log_every, checkpoint_every: in steps.
        sharding: over several workers: none = each holds everything, full = each holds a piece of every weight.
    """

    micro_batch: int | None = None
    log_every: int = 50
    checkpoint_every: int = 500
    sharding: str = "none"
