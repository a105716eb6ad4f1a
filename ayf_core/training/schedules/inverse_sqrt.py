"""Inverse square root of the step, as EDM2 trains (Karras et al., arXiv 2312.02696)."""

import math

from ayf_core.registry import register


@register("schedule", "inverse_sqrt", title="inverse square root")
def inverse_sqrt(step: int, steps: int, warmup_steps: int) -> float:
    """√(warm-up / step), steps counted from 1: the end of the warm-up is the paper's t_ref."""
    return math.sqrt(max(1, warmup_steps) / (step + 1))
