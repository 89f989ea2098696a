"""The growth of an export's error along the network, as a page with an interactive plot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from u2export.errors import DependencyError, pip_command
from u2export.parity.bisect import Bisection, ModuleError
from u2export.parity.bisect_report import bisection_verdict
from u2export.reports.page import render_page
from u2export.system.files import write_text

# Errors of zero and infinite ones, on a logarithmic axis.
_FLOOR, _CEILING = 1e-9, 1e3
_CULPRIT_COLOUR, _MODULE_COLOUR = "#b3261e", "#3b6ea5"
# The curves: name, field of `ModuleError`, marker, line.
_CURVES = (
    ("the tensor's largest error, by its largest value", "relative_max", "circle", "solid"),
    ("the tensor's mean error, by its mean value", "relative_mean", "diamond", "dot"),
)


def write_growth_page(bisection: Bisection, title: str, path: Path) -> None:
    """Write a page with a plot of the error's growth, complete or not at all.

    Args:
        bisection: the result to plot.
        title: what was compared with what.
        path: the HTML file.

    Raises:
        InputError: the file cannot be written.
        DependencyError: a package that the plot needs is not installed.
    """
    try:
        plot = _plot(bisection)
    except ModuleNotFoundError as error:
        raise DependencyError(f"this form needs {error.name}: {pip_command('parity')}") from error
    write_text(path, render_page(title, bisection_verdict(bisection), plot))


def _plot(bisection: Bisection) -> str:
    """The plot as HTML that needs nothing but itself."""
    import plotly.graph_objects as go  # an optional package

    names = [module.name for module in bisection.modules]
    figure = go.Figure(data=[*_curves(bisection), _effects(bisection)])
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
    if bisection.culprit:
        index = names.index(bisection.culprit)
        figure.add_vline(
            x=index,
            line={"color": _CULPRIT_COLOUR, "dash": "dash"},
            annotation={"text": bisection.culprit, "font": {"color": _CULPRIT_COLOUR}},
            annotation_position="top left" if index > len(names) / 2 else "top right",
        )
    html: str = figure.to_html(full_html=False, include_plotlyjs=True)
    return html


def _curves(bisection: Bisection) -> Iterator[dict[str, Any]]:
    """The tensors' errors, with the culprit marked."""
    names = [module.name for module in bisection.modules]
    for label, field, symbol, dash in _CURVES:
        yield {
            "type": "scatter",
            "x": names,
            "y": [_plottable(getattr(module, field)) for module in bisection.modules],
            "name": label,
            "mode": "lines+markers",
            "marker": {
                "symbol": symbol,
                "size": [11 if name == bisection.culprit else 6 for name in names],
                "color": [
                    _CULPRIT_COLOUR if name == bisection.culprit else _MODULE_COLOUR
                    for name in names
                ],
            },
            "line": {"color": _MODULE_COLOUR, "dash": dash},
        }


def _effects(bisection: Bisection) -> dict[str, Any]:
    """What each module's tensor alone does to the saliency."""
    modules = [module for module in bisection.modules if module.difference]
    return {
        "type": "bar",
        "x": [module.name for module in modules],
        "y": [_effect(module) for module in modules],
        "name": "what it alone does to the saliency, mean",
        "marker": {"color": _CULPRIT_COLOUR, "opacity": 0.35},
    }


def _effect(module: ModuleError) -> float:
    return _plottable(module.difference.raw_mean) if module.difference else _FLOOR


def _plottable(error: float) -> float:
    return max(error, _FLOOR) if math.isfinite(error) else _CEILING
