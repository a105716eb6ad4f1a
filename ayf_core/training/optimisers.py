"""Optimiser and learning-rate schedule; the schedule is a function of the global step, so it has no state."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) and its schedule.

    Args:
        learning_rate: at the top of the schedule.
        beta1, beta2: of Adam.
        weight_decay: decoupled; only on matrices, never on biases, gains and embeddings' scales.
        warmup_steps: linear growth from 0.
        schedule: after the warm-up: constant, cosine (to 0 at the last step) or inverse_sqrt (EDM2's, from the
            end of the warm-up).
        gradient_clip: largest gradient norm; 0 for none.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: str = "constant"
    gradient_clip: float = 1.0


def build_optimiser(module: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
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


def learning_rate(settings: OptimiserSettings, step: int, total: int) -> float:
    """The learning rate of optimiser step `step`, counted from 0, out of `total`."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "cosine":
        done = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "inverse_sqrt":
        return settings.learning_rate * math.sqrt(max(1, settings.warmup_steps) / (step + 1))
    return settings.learning_rate
