"""What a person sets of a training."""

from dataclasses import dataclass

from ayf_core.precision import PRECISIONS
from ayf_core.settings import setting


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything of a training that changes its result: read by the loop, the optimiser and the averages.

    The optimiser is AdamW (Loshchilov & Hutter, arXiv 1711.05101).
    """

    steps: int = setting("optimiser steps", at_least=1)
    batch_size: int = setting("global batch: the same whatever the number of workers", at_least=1)
    precision: str = setting("arithmetic of the networks", choices=PRECISIONS)
    learning_rate: float = setting("Adam's, after warm-up", above=0.0)
    beta1: float = setting("Adam's first decay", at_least=0.0, below=1.0)
    beta2: float = setting("Adam's second decay", at_least=0.0, below=1.0)
    weight_decay: float = setting("decoupled weight decay", at_least=0.0)
    warmup_steps: int = setting("steps of linear warm-up of the learning rate", at_least=0)
    schedule: str = setting("learning rate after warm-up", room="schedule")
    gradient_clip: float = setting("largest gradient norm", above=0.0)
    ema_stds: list[float] = setting("relative widths of the averages kept (EDM2)", above=0.0, at_most=0.28)
    ema_std: float = setting("width of the one that is published", above=0.0, at_most=0.28)
