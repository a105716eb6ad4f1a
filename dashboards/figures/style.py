"""The look every figure shares: readable in 360 pixels of width, hover texts in words, no empty axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable

import pandas as pd
import plotly.graph_objects as go

INK, FAINT, GRID = "#222222", "#767676", "#e6e6e6"
HEIGHT = 460
_TITLE_WIDTH = 42


def styled(figure: go.Figure, title: str, *, x: str = "", height: int = HEIGHT) -> go.Figure:
    """The shared layout. The title says what y is, so that no axis title takes width; the legend lies below.

    Plotly breaks no lines: title and axis title are broken here, for the width of a phone.
    """
    lines = textwrap.wrap(title, _TITLE_WIDTH)
    figure.update_layout(
        template="none",  # the others cost more than the rest of a figure, in time and in bytes
        title={"text": "<br>".join(lines), "x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"},
        title_pad={"t": 14, "l": 8},
        title_font_size=15,
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        margin={"l": 48, "r": 12, "t": 28 + 20 * len(lines), "b": 48},
        height=height,
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "yref": "paper"},
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"color": INK}},
        hovermode="closest",
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    if x:
        figure.update_xaxes(title_text=broken(x), title_standoff=6)
        figure.update_layout(legend_y=-0.16 - 0.05 * broken(x).count("<br>"))
    return figure


def broken(text: str, width: int = 46) -> str:
    """Text in lines that fit a phone."""
    return "<br>".join(textwrap.wrap(text, width))


def empty(title: str, missing: str, remedy: str) -> go.Figure:
    """A figure without data: what is missing, in words, and the command that makes it."""
    figure = styled(go.Figure(), title, height=220)
    figure.add_annotation(
        text=f"{broken(missing, 40)}<br><br>{broken(remedy, 40)}",
        showarrow=False,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def with_interval(value: float, half_width: float | None) -> str:
    """`0.61 ± 0.1`, or the value alone where no interval is known."""
    known = half_width is not None and not pd.isna(half_width)
    return f"{value:.3g} ± {half_width:.1g}" if known else f"{value:.3g}"


def day(at: pd.Timestamp) -> str:
    """`25 Nov 2026 03:41`, UTC."""
    return "unknown time" if pd.isna(at) else f"{at:%-d %b %Y %H:%M}"


def duration(seconds: float) -> str:
    """A length of time as people say it: `41 s`, `3 min 12 s`, `2 h 5 min`."""
    if pd.isna(seconds):
        return "not finished"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def small_time(seconds: float) -> str:
    """Seconds of one image in the unit that suits: `0.41 ms`."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def log_axis(values: pd.Series, words: Callable[[float], str] = "{:.4g}".format) -> dict:
    """A logarithmic axis with ticks at 1, 2 and 5 of each decade that positive values reach; of a wide range at 1."""
    known = values[values > 0]
    if known.empty:
        return {"type": "log"}
    low, high = math.log10(known.min() / 1.1), math.log10(known.max() * 1.1)
    every = (1,) if high - low > 3 else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in every]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    if len(ticks) < 2:  # within one step of 1, 2, 5: Plotly's own ticks tell more
        return {"type": "log", "nticks": 6}
    return measured_ticks(ticks, words)


def measured_ticks(values: Iterable[float], words: Callable[[float], str] = "{:g}".format) -> dict:
    """A logarithmic axis with ticks at these very values."""
    ticks = sorted(set(values))
    return {"type": "log", "tickvals": ticks, "ticktext": [words(tick) for tick in ticks]}


def row_titles(figure: go.Figure) -> None:
    """Titles of subplots at the left, in the size of text; call before other annotations are added."""
    figure.update_annotations(x=0, xref="paper", xanchor="left", font_size=13)
