"""The growth of an export's error along the network, as one page with an interactive plot."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from u2export import webpage
from u2export.parity.bisect import Bisection, ModuleError, verdict

_FLOOR = 1e-9  # what a logarithmic axis shows of an error of zero
_FAULT, _PLAIN = "#b3261e", "#3b6ea5"
_SERIES = (
    ("the tensor's largest error, by its largest value", "relative_max", "circle"),
    ("the tensor's mean error, by its mean value", "relative_mean", "diamond"),
)


def page(found: Bisection, title: str) -> str:
    """Write the page.

    Args:
        found: what was measured.
        title: what was compared with what.

    Returns:
        HTML that needs nothing but itself.
    """
    names = [module.name for module in found.modules]
    figure = go.Figure()
    for label, field, symbol in _SERIES:
        figure.add_scatter(
            x=names,
            y=[_drawn(getattr(module, field)) for module in found.modules],
            name=label,
            mode="lines+markers",
            marker={
                "symbol": symbol,
                "size": [11 if name == found.culprit else 6 for name in names],
                "color": [_FAULT if name == found.culprit else _PLAIN for name in names],
            },
            line={"color": _PLAIN, "dash": "solid" if field == "relative_max" else "dot"},
        )
    effects = [module for module in found.modules if module.difference]
    figure.add_bar(
        x=[module.name for module in effects],
        y=[_effect(module) for module in effects],
        name="what it alone does to the saliency, mean",
        marker={"color": _FAULT, "opacity": 0.35},
    )
    figure.update_xaxes(
        categoryorder="array", categoryarray=names, tickangle=-60, title="module, as executed"
    )
    figure.update_yaxes(type="log", title="error", exponentformat="e")
    figure.update_layout(
        template="plotly_white",
        height=640,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 50, "r": 10},
    )
    if found.culprit:
        place = names.index(found.culprit)
        figure.add_vline(
            x=place,
            line={"color": _FAULT, "dash": "dash"},
            annotation={"text": found.culprit, "font": {"color": _FAULT}},
            annotation_position="top left" if place > len(names) / 2 else "top right",
        )
    plot = figure.to_html(full_html=False, include_plotlyjs=True)
    return webpage.page(title, verdict(found), plot)


def _effect(module: ModuleError) -> float:
    return _drawn(module.difference.raw_mean) if module.difference else _FLOOR


def _drawn(error: float) -> float:
    return max(error, _FLOOR) if math.isfinite(error) else 1e3
