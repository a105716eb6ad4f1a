"""How a training went: its loss, and what is measured in bins of t − s or of t."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards import names
from dashboards.figures.style import empty, log_axis, row_titles, styled

_BIN_COLOURS = ["#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#000000"]
_WORDS = {"t − s": "the length t − s of the jump", "t": "time t"}


def training_figure(curves: pd.DataFrame, variable: str = "t − s") -> go.Figure:
    """The loss and below it every quantity measured in bins of one variable, a line a bin, by training steps.

    Args:
        curves: as `frames.training_curves` reads them.
        variable: `t − s` or `t`. A normalised loss is constant by construction: the bins are what tells.
    """
    heading = f"Training, in bins of {_WORDS.get(variable, variable)}"
    binned = curves[curves["variable"].map(lambda name: names.VARIABLES.get(name, name)) == variable]
    parts = [("loss", curves[curves["metric"] == "loss"])] if (curves["metric"] == "loss").any() else []
    parts += [(str(name), part) for name, part in binned.groupby("quantity", sort=True)]
    if not parts:
        return empty(heading, "This run has no training curves.", "`dvc repro` trains; choose a training's run.")
    titles = [names.measure(name) for name, _ in parts]
    spacing = min(0.08, 0.4 / len(parts))
    figure = make_subplots(len(parts), 1, shared_xaxes=True, vertical_spacing=spacing, subplot_titles=titles)
    row_titles(figure)
    lows = sorted(binned["low"].unique())
    named: set[str] = set()
    for place, (_, part) in enumerate(parts, start=1):
        for metric, line in part.groupby("metric", sort=True):
            low, high = line["low"].iloc[0], line["high"].iloc[0]
            whole = pd.isna(low)
            name = "all samples" if whole else f"{variable} from {low:.2g} to {high:.2g}"
            colour = "#000000" if whole else _BIN_COLOURS[lows.index(low) % len(_BIN_COLOURS)]
            figure.add_scatter(
                x=line["step"], y=line["value"], name=name, legendgroup=name, showlegend=name not in named,
                mode="lines" if len(line) > 1 else "markers", line={"color": colour, "width": 1.5}, row=place, col=1,
                hovertemplate=f"{name}<br>step %{{x}}: %{{y:.4g}}<extra></extra>", meta=metric,
            )  # fmt: skip
            named.add(name)
        if len(part) and (part["value"] > 0).all():
            figure.update_yaxes(**log_axis(part["value"]), row=place, col=1)
    styled(figure, heading, height=170 * len(parts) + 170)
    figure.update_layout(margin_t=figure.layout.margin.t + 28, legend_y=-50 / (170 * len(parts)))
    figure.update_xaxes(title_text="training step", row=len(parts), col=1)
    return figure
