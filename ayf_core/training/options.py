"""How a training's loop is run."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop is run: the result is the same, up to rounding, whatever these are.

    Args:
        micro_batch: most samples in one forward pass on one worker; accumulation follows from it. 'auto' is as many as
            fit into its memory, found by a trial before the first step.
        log_every, checkpoint_every: in steps.
        sharding: over several workers: none = each holds everything, full = each holds a piece of every weight.
        compile: networks by torch.compile.
        activation_checkpointing: keep the input of each block alone, and compute the rest again in the backward pass.
    """

    micro_batch: int | str | None = None
    log_every: int = 50
    checkpoint_every: int = 500
    sharding: str = "none"
    compile: bool = False
    activation_checkpointing: bool = False
