"""Train the weak teacher of autoguidance: a smaller network, trained less, on the same data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.stages.train_teacher import train_velocity

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings.experiment import Config


def run(config: Config, stage: Stage) -> None:
    train_velocity(config.weak_teacher, "weak_teacher", config, stage)
