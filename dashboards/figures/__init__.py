"""Pure functions from a data frame of `dashboards.frames` to a Plotly figure; without data they say what makes it."""

from dashboards.figures.lineage import lineage_figure
from dashboards.figures.quality import (
    cost_figure,
    pareto_front,
    quality_figure,
    quality_table,
    sweep_of_sampling_figure,
)
from dashboards.figures.samples import samples_figure
from dashboards.figures.sweep import (
    best_trial,
    confirmation_figure,
    importance_figure,
    learning_curves_figure,
    parallel_figure,
    pareto_figure,
    short,
    timeline_figure,
    trials_table,
)
from dashboards.figures.training import training_figure

__all__ = [
    "best_trial",
    "confirmation_figure",
    "cost_figure",
    "importance_figure",
    "learning_curves_figure",
    "lineage_figure",
    "parallel_figure",
    "pareto_figure",
    "pareto_front",
    "quality_figure",
    "quality_table",
    "samples_figure",
    "short",
    "sweep_of_sampling_figure",
    "timeline_figure",
    "training_figure",
    "trials_table",
]
