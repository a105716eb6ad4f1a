"""The optimiser, and the learning rate as a function of the global step, which so has no state."""

import torch
from torch import nn

from ayf_core.registry import find
from ayf_core.training_settings import TrainingSettings


def build_optimiser(module: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW over what is trained of a module. Weight decay acts on matrices alone, never on biases and gains.

    Fused, because only the fused one can leave out a step on the device: see `PhaseRunner`.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of optimiser step `step`, counted from 0: linear warm-up, then the schedule."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    schedule = find("schedule", settings.schedule).load()
    return settings.learning_rate * schedule(step, settings.steps, settings.warmup_steps)
