"""Half a cosine from the top to nearly zero (Loshchilov & Hutter, arXiv 1608.03983, without restarts)."""

import math

from ayf_core.registry import register


@register("schedule", "cosine", title="cosine")
def cosine(step: int, steps: int, warmup_steps: int) -> float:
    """(1 + cos(π d)) / 2, where d is the share of the steps after the warm-up that are finished: 0 after the last."""
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))
