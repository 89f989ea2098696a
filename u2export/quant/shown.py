"""How a network was brought to 8 bits, for people: in the terminal, and as a page with plots."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from u2export import webpage
from u2export.artifact import QuantizationFacts
from u2export.quant.account import Account, Point

SHOWN = 40  # layers in the plot: those that matter
LISTED = 10  # layers in the terminal
_FLOAT, _WHOLE, _ASKED = "#b3261e", "#3b6ea5", "#777777"
_WIDTH = 100


def text(account: Account, asked: QuantizationFacts) -> str:
    """The account for a terminal."""
    layers = Table("layer", "foretold damage", "in", title="what rounding each layer does")
    for name, damage in list(account.why.items())[:LISTED]:
        place = "float32" if name in account.in_float else "int8"
        layers.add_row(name, f"{damage:.2g}", place)
    masks = Table("layers in float32", "mask IoU", "worst", "mean absolute difference")
    for point in account.curve:
        masks.add_row(str(point.in_float), *_figures(point))
    console = Console(width=_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(layers)
        console.print(masks)
    return f"{capture.get()}{_verdict(account, asked)}"


def page(account: Account, asked: QuantizationFacts, title: str) -> str:
    """The account as one page that needs nothing but itself.

    Raises:
        ModuleNotFoundError: the package that draws is not installed.
    """
    from plotly.subplots import make_subplots  # the terminal does without

    figure = make_subplots(
        rows=2,
        cols=1,
        subplot_titles=(
            "Masks, by layers in float32",
            f"Foretold damage, {SHOWN} worst layers",
        ),
        vertical_spacing=0.16,
    )
    counts = [point.in_float for point in account.curve]
    for label, values, dash in (
        ("mean of the pictures", [point.mask_iou for point in account.curve], "solid"),
        ("worst picture", [point.worst_iou for point in account.curve], "dot"),
    ):
        figure.add_scatter(
            x=counts,
            y=values,
            name=label,
            mode="lines+markers",
            line={"color": _WHOLE, "dash": dash},
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=[account.result.in_float],
        y=[account.result.mask_iou],
        name="chosen, on pictures the search never saw",
        mode="markers",
        marker={"color": _FLOAT, "size": 12, "symbol": "star"},
        row=1,
        col=1,
    )
    figure.add_hline(y=asked.min_iou, line={"color": _ASKED, "dash": "dash"}, row=1, col=1)
    names = list(account.why)[:SHOWN]
    figure.add_bar(
        x=names,
        y=[max(account.why[name], 1e-12) for name in names],
        marker={"color": [_FLOAT if n in account.in_float else _WHOLE for n in names]},
        name="red: stays in float32",
        row=2,
        col=1,
    )
    figure.update_xaxes(title="layers in float32", row=1, col=1)
    figure.update_yaxes(title="mask IoU", row=1, col=1)
    figure.update_xaxes(tickangle=-60, row=2, col=1)
    figure.update_yaxes(
        type="log", title="mean squared error of the saliency", exponentformat="e", row=2, col=1
    )
    figure.update_layout(
        template="plotly_white",
        height=900,
        legend={"orientation": "h", "y": 1.06, "yanchor": "bottom", "x": 0},
        margin={"l": 50, "r": 10},
    )
    plot = figure.to_html(full_html=False, include_plotlyjs=True, config={"displayModeBar": False})
    return webpage.page(title, _verdict(account, asked).splitlines(), plot)


def _figures(point: Point) -> tuple[str, str, str]:
    values = (point.mask_iou, point.worst_iou, point.mask_mae)
    first, second, third = ("-" if value is None else f"{value:.4f}" for value in values)
    return first, second, third


def _verdict(account: Account, asked: QuantizationFacts) -> str:
    left = ", ".join(account.in_float) or "none"
    pictures = "drawn pictures" if account.drawn else "pictures"
    iou, worst, mae = _figures(account.result)
    return (
        f"in float32: {left}; {account.share:.1%} of the multiply-adds in whole numbers\n"
        f"calibrated and searched on {len(account.searched)} {pictures}, judged on "
        f"{len(account.judged)} others: mask IoU {iou} (worst {worst}), mean absolute difference "
        f"{mae}; asked were {asked.min_iou:g} and {asked.max_mae:g}\n"
        f"in the signed form, which TensorRT takes: IoU {_figures(account.signed)[0]}"
    )
