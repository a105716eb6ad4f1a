"""Train a flow map from the data alone, by an objective that needs no teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.stages.assembly import keep_model
from pipelines.stages.distill import train
from pipelines.stages.job import latent_job

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings.experiment import Config


def run(config: Config, stage: Stage) -> None:
    name = stage.item["objective"]
    job = latent_job(config, stage)
    settings = {"job": job, "distill": config.distill, "network": config.teacher.network, "name": name}
    result = stage.train(train, settings)
    stage.run.log_values({"parameters": result["parameters"], "tangent_error": result["tangent_error"]})
    keep_model(config, stage, f"models/{name}")
