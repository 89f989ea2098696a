"""Reports of how a network was quantized: text for a terminal, and an HTML page with plots."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from u2export.core.facts import QuantizationFacts
from u2export.core.int8_record import Int8Record, MaskQuality
from u2export.reports.page import render_page
from u2export.reports.table import render_tables

_PLOTTED_LAYERS = 40
_LISTED_LAYERS = 10  # in the terminal
_FLOAT_COLOUR, _INT8_COLOUR, _REQUEST_COLOUR = "#b3261e", "#3b6ea5", "#777777"
_SMALLEST_BAR = 1e-12  # a logarithmic axis has no zero
_TABLE_WIDTH = 100


def format_text(record: Int8Record, request: QuantizationFacts) -> str:
    """Format a record for a terminal."""
    layers = Table("layer", "foretold damage", "in", title="what rounding each layer does")
    for name, predicted_error in list(record.why.items())[:_LISTED_LAYERS]:
        precision = "float32" if name in record.in_float else "int8"
        layers.add_row(name, f"{predicted_error:.2g}", precision)
    masks = Table("layers in float32", "mask IoU", "worst", "mean absolute difference")
    for quality in record.curve:
        masks.add_row(str(quality.in_float), *_figures(quality))
    tables = render_tables(layers, masks, width=_TABLE_WIDTH)
    return f"{tables}\n{_summary(record, request)}"


def render_int8_page(record: Int8Record, request: QuantizationFacts, title: str) -> str:
    """Render a record as a self-contained HTML page.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    from plotly.subplots import make_subplots  # not needed for the terminal

    titles = ("Masks, by layers in float32", f"Foretold damage, {_PLOTTED_LAYERS} worst layers")
    figure = make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.16)
    _plot_masks(figure, record, request)
    _plot_predicted_errors(figure, record)
    figure.update_layout(
        template="plotly_white",
        height=900,
        legend={"orientation": "h", "y": 1.06, "yanchor": "bottom", "x": 0},
        margin={"l": 50, "r": 10},
    )
    plot = figure.to_html(full_html=False, include_plotlyjs=True, config={"displayModeBar": False})
    return render_page(title, _summary(record, request).splitlines(), plot)


def _plot_masks(figure: Any, record: Int8Record, request: QuantizationFacts) -> None:
    """Plot mask IoU by the number of layers in float32."""
    subplot = {"row": 1, "col": 1}
    mean_ious = [quality.mask_iou for quality in record.curve]
    worst_ious = [quality.worst_iou for quality in record.curve]
    for label, ious, dash in (
        ("mean of the pictures", mean_ious, "solid"),
        ("worst picture", worst_ious, "dot"),
    ):
        figure.add_scatter(
            x=[quality.in_float for quality in record.curve],
            y=ious,
            name=label,
            mode="lines+markers",
            line={"color": _INT8_COLOUR, "dash": dash},
            **subplot,
        )
    figure.add_scatter(
        x=[record.result.in_float],
        y=[record.result.mask_iou],
        name="chosen, on pictures the search never saw",
        mode="markers",
        marker={"color": _FLOAT_COLOUR, "size": 12, "symbol": "star"},
        **subplot,
    )
    line = {"color": _REQUEST_COLOUR, "dash": "dash"}
    figure.add_hline(y=request.min_iou, line=line, **subplot)
    figure.update_xaxes(title="layers in float32", **subplot)
    figure.update_yaxes(title="mask IoU", **subplot)


def _plot_predicted_errors(figure: Any, record: Int8Record) -> None:
    """Plot the predicted error of the worst layers."""
    subplot = {"row": 2, "col": 1}
    layers = list(record.why)[:_PLOTTED_LAYERS]
    colours = [_FLOAT_COLOUR if name in record.in_float else _INT8_COLOUR for name in layers]
    figure.add_bar(
        x=layers,
        y=[max(record.why[name], _SMALLEST_BAR) for name in layers],
        marker={"color": colours},
        name="red: stays in float32",
        **subplot,
    )
    figure.update_xaxes(tickangle=-60, **subplot)
    title = "mean squared error of the saliency"
    figure.update_yaxes(type="log", title=title, exponentformat="e", **subplot)


def _summary(record: Int8Record, request: QuantizationFacts) -> str:
    float_layers = ", ".join(record.in_float) or "none"
    pictures = "drawn pictures" if record.drawn else "pictures"
    iou, worst, mae = _figures(record.result)
    return (
        f"in float32: {float_layers}; {record.share:.1%} of the multiply-adds in whole numbers\n"
        f"calibrated and searched on {len(record.searched)} {pictures}, judged on "
        f"{len(record.judged)} others: mask IoU {iou} (worst {worst}), mean absolute difference "
        f"{mae}; asked were {request.min_iou:g} and {request.max_mae:g}\n"
        f"in the signed form, which TensorRT takes: IoU {_figures(record.signed)[0]}"
    )


def _figures(quality: MaskQuality) -> tuple[str, str, str]:
    """Format mean IoU, worst IoU and mean absolute difference."""
    values = (quality.mask_iou, quality.worst_iou, quality.mask_mae)
    mean_iou, worst_iou, mae = ("-" if value is None else f"{value:.4f}" for value in values)
    return mean_iou, worst_iou, mae
