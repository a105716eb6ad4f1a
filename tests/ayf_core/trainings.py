"""Settings of a training, for tests that care about a few of them."""

from typing import Any

from ayf_core.training_settings import TrainingSettings


def training_settings(**changes: Any) -> TrainingSettings:
    """A small training at a constant rate, with these changes."""
    values: dict[str, Any] = {
        "steps": 100,
        "batch_size": 8,
        "precision": "float32",
        "learning_rate": 1e-2,
        "beta1": 0.9,
        "beta2": 0.99,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "schedule": "constant",
        "gradient_clip": 1.0,
        "ema_stds": [0.05, 0.1],
        "ema_std": 0.1,
    }
    return TrainingSettings(**values | changes)
