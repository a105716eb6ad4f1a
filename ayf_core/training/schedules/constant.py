"""The top rate to the end."""

from ayf_core.registry import register


@register("schedule", "constant", title="constant")
def constant(step: int, steps: int, warmup_steps: int) -> float:
    """1."""
    return 1.0
