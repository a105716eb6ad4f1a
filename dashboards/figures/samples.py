"""Pictures of samples, with a slider over network calls and one over the guidance scale."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dashboards import names
from dashboards.figures.style import empty, styled

_ROOM_BELOW = 64


def samples_figure(pictures: pd.DataFrame, side: int = 432) -> go.Figure:
    """One model's sample grids. The pictures lie side by side on a sheet of (calls, λ); sliders move the window.

    Two sliders are thus independent of each other without a server: one moves along x, one along y.

    Args:
        pictures: rows of one model of `frames.sample_pictures`.
        side: height of the picture in pixels.
    """
    if pictures.empty:
        return empty("Samples", "No pictures of samples are recorded here.", "`dvc repro` evaluates every model.")
    model = str(pictures["model"].iloc[0])
    calls = sorted(pictures["nfe"].unique())
    scales = sorted(pictures["guidance_scale"].dropna().unique()) or [float("nan")]
    figure = go.Figure()
    # An axis without a trace is not drawn: one point without extent, in the middle of the first picture.
    figure.add_scatter(x=[0.5], y=[0.5], mode="markers", marker={"opacity": 0}, hoverinfo="skip", showlegend=False)
    for i, count in enumerate(calls):
        for j, scale in enumerate(scales):
            _place(figure, _picture(pictures, count, scale), i, j)
    sliders = [_slider("Network calls", [str(count) for count in calls], "xaxis")]
    if len(scales) > 1:
        sliders.append(_slider("Guidance scale λ", [f"{scale:g}" for scale in scales], "yaxis"))
    below = 20 + (_ROOM_BELOW + 12) * len(sliders)
    for place, slider in enumerate(sliders):
        slider["y"] = -(_ROOM_BELOW + 12) * place / side
    styled(figure, f"Samples: {names.title(model)}", height=side + below + 48)
    figure.update_layout(sliders=sliders, margin={"l": 8, "r": 8, "t": 48, "b": below}, dragmode=False)
    figure.update_xaxes(range=[0, 1], visible=False, fixedrange=True)
    figure.update_yaxes(range=[0, 1], visible=False, fixedrange=True)
    return figure


def _picture(pictures: pd.DataFrame, count: int, scale: float) -> str | None:
    """The picture of this pair; a model measured at one place without λ shows that wherever λ is."""
    rows = pictures[pictures["nfe"] == count]
    exact = rows[(rows["guidance_scale"] == scale) | (rows["guidance_scale"].isna() & math.isnan(scale))]
    plain = rows[rows["guidance_scale"].isna()]
    found = exact if len(exact) else plain
    return None if found.empty else str(found["picture"].iloc[0])


def _place(figure: go.Figure, picture: str | None, i: int, j: int) -> None:
    if picture is None:
        figure.add_annotation(text="no picture of this pair", x=i + 0.5, y=j + 0.5, showarrow=False)
        return
    figure.add_layout_image(
        source=picture, xref="x", yref="y", x=i + 0.5, y=j + 0.5, sizex=0.98, sizey=0.98, xanchor="center",
        yanchor="middle", sizing="contain", layer="below",
    )  # fmt: skip


def _slider(title: str, labels: list[str], axis: str) -> dict:
    """A slider whose place k shows the stretch from k to k + 1 of an axis."""
    return {
        "active": 0,
        "currentvalue": {"prefix": f"{title}: ", "font": {"size": 13}},
        "pad": {"t": 8, "b": 0, "l": 4, "r": 4},
        "len": 1,
        "x": 0,
        "yanchor": "top",
        "steps": [
            {"label": label, "method": "relayout", "args": [{f"{axis}.range": [k, k + 1]}]}
            for k, label in enumerate(labels)
        ],
    }
