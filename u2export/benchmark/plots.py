"""The plots of a benchmark's page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from u2export.benchmark.report import STAGES, BenchmarkReport, Row
from u2export.benchmark.text import (
    format_number,
    latency_text,
    one_line,
    picture_interval,
    row_state,
    verdict_text,
)
from u2export.core import registry
from u2export.errors import U2ExportError

MIN_MASK_ERROR = 1e-6  # the logarithmic axis shows smaller errors here
_MAX_LABEL_LENGTH = 28  # characters of a name; so it fits the screen of a telephone
_BAR_PITCH = 54  # pixels from bar to bar: a line of text and the bar below it
_BAR_WIDTH = 0.42  # of the pitch
_MIN_MARKER, _MAX_MARKER = 12.0, 38.0  # pixels, for no memory and for the largest memory
_OUTLINE_WIDTH = 2.5  # pixels
_GRAY = "#7b7f86"  # readable on white and on black
_GRID = "rgba(123,127,134,0.25)"


@dataclass(frozen=True)
class RowStyle:
    """Style of a kind of rows. Kinds differ by more than their colour.

    Attributes:
        name: name in the legend.
        colour: CSS colour of bars and markers.
        hatch: plotly's pattern of bars.
        symbol: plotly's symbol of markers.
        label_prefix: sign before the label of a bar.
        bar_sign: character for a bar in the legend.
        marker_sign: character for a marker in the legend.
    """

    name: str
    colour: str
    hatch: str
    symbol: str
    label_prefix: str
    bar_sign: str
    marker_sign: str


_FRONT_NAME = "best trade-offs"
# In the order of the legend.
STYLES = {
    "best": RowStyle("fastest with the right mask", "#1f8f4d", "", "star", "★ ", "■", "★"),
    "right": RowStyle("right mask", "#4a86c5", "", "circle", "", "■", "●"),
    "wrong": RowStyle("WRONG MASK", "#d6303b", "/", "x", "✘ ", "▨", "✖"),
    "unjudged": RowStyle("mask not compared", "#9a9fa6", ".", "circle-open", "? ", "▒", "○"),
}
_STAGE_COLOURS = ("#5aa9a3", "#86c06c", "#c9b23a", "#4a86c5", "#a98bd0", "#d98a4e", "#c9709a")


@dataclass(frozen=True)
class Plot:
    """A plot of the page.

    Attributes:
        key: identifier in the page.
        title: heading.
        caption: how to read the plot.
        alt_text: the plot's labels, for readers who cannot see it.
        legend: sign, colour and name of each entry.
        height: pixels.
        figure_json: plotly's figure, escaped for a script element.
    """

    key: str
    title: str
    caption: str
    alt_text: str
    legend: tuple[tuple[str, str, str], ...]
    height: int
    figure_json: str


def ranked_rows(report: BenchmarkReport) -> list[Row]:
    """Return the rows, fastest first. Rows without a latency come last."""
    return sorted(report.rows, key=lambda row: (picture_interval(row) or (math.inf,))[0])


def row_kind(row: Row, report: BenchmarkReport) -> str:
    """Return `best` for the winner, else the row's state: a key of `STYLES`, or `failed`."""
    is_winner = report.winner is not None and row.name == report.winner.name
    return "best" if is_winner else row_state(row)


def _latency_plot(rows: Sequence[Row], report: BenchmarkReport) -> Iterator[Plot]:
    """Plot one bar per row, with its interval."""
    values = {row.name: interval[0] for row in rows if (interval := picture_interval(row))}
    figure = _bar_figure(values, report, "ms", _error_bars)
    caption = "The shorter, the faster. The thin line is the 95 % interval of the median."
    yield from _create_plot(
        "latency", "Time of a picture, ms", caption, figure, len(values), rows=rows
    )


def _error_bars(rows: Sequence[Row]) -> dict[str, object]:
    """Return the intervals of measured rows, as plotly's error bars."""
    intervals = [interval for row in rows if (interval := picture_interval(row))]
    return {
        "array": [max(high - median, 0) for median, _, high in intervals],
        "arrayminus": [max(median - low, 0) for median, low, _ in intervals],
        "color": _GRAY,
        "thickness": 2,
    }


def _trade_off_plot(rows: Sequence[Row], report: BenchmarkReport) -> Iterator[Plot]:
    """Plot time against mask error, one marker per row."""
    points = _times_and_errors(rows)
    figure = go.Figure()
    _add_front(figure, [points[row.name] for row in rows if row.name in points and row.is_correct])
    max_memory_mb = max((row.memory_mb or 0.0 for row in rows), default=0.0)
    numbered = [(number, row) for number, row in enumerate(rows, 1) if row.name in points]
    for kind, style in STYLES.items():
        selected = [(number, row) for number, row in numbered if row_kind(row, report) == kind]
        if selected:
            _add_markers(figure, style, selected, points, max_memory_mb)
    axis = {"font": {"size": 13}, "standoff": 12}
    figure.update_xaxes(title={"text": "ms a picture", **axis}, rangemode="tozero")
    figure.update_yaxes(title={"text": "1 - IoU of the worst picture", **axis}, type="log")
    figure.update_yaxes(exponentformat="power", dtick=1, tickfont={"size": 12})
    caption = (
        "Left is faster, below is closer to the reference. The larger, the more memory. "
        "The numbers are those of the bars above; "
        f"no error at all is drawn at {MIN_MASK_ERROR:.6f}."
    )
    yield from _create_plot(
        "trade", "Speed against mask error", caption, figure, len(points), 420, rows=rows
    )


def _times_and_errors(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Return ms per picture and error of the worst mask, for rows that have both."""
    return {
        row.name: (interval[0], max(1 - row.mask.worst_iou, MIN_MASK_ERROR))
        for row in rows
        if (interval := picture_interval(row)) and row.mask and row.mask.worst_iou is not None
    }


def _add_front(figure: go.Figure, points: Sequence[tuple[float, float]]) -> None:
    """Draw the Pareto front, if it has more than one point."""
    front = _pareto_front(points)
    if len(front) < 2:
        return
    x, y = zip(*front, strict=True)
    line = {"color": _GRAY, "dash": "dot", "shape": "hv"}
    figure.add_scatter(
        x=x, y=y, mode="lines", line=line, hoverinfo="skip", name=_FRONT_NAME, meta="┄"
    )


def _pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in time and error, fastest first."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _add_markers(
    figure: go.Figure,
    style: RowStyle,
    numbered: Sequence[tuple[int, Row]],
    points: Mapping[str, tuple[float, float]],
    max_memory_mb: float,
) -> None:
    """Add the markers of one kind of rows.

    Args:
        figure: gets the markers.
        style: of this kind.
        numbered: number and row of each marker.
        points: time and error by the row's name.
        max_memory_mb: memory of the largest marker.
    """
    rows = [row for _, row in numbered]
    figure.add_scatter(
        x=[points[row.name][0] for row in rows],
        y=[points[row.name][1] for row in rows],
        ids=[one_line(row.name) for row in rows],
        text=[str(number) for number, _ in numbered],
        textposition="middle right",
        hovertext=[_hover_text(row) for row in rows],
        hoverinfo="text",
        mode="markers+text",
        name=style.name,
        meta=style.marker_sign,
        marker={
            "color": style.colour,
            "symbol": style.symbol,
            "size": [_marker_size(row.memory_mb or 0.0, max_memory_mb) for row in rows],
            "line": _outline(rows),
            "opacity": 0.85,
        },
    )


def _marker_size(memory_mb: float, max_memory_mb: float) -> float:
    """Return a diameter in pixels. It grows with the square root: readers compare areas."""
    share = memory_mb / max_memory_mb if max_memory_mb > 0 else 0.0
    return _MIN_MARKER + (_MAX_MARKER - _MIN_MARKER) * math.sqrt(max(share, 0.0))


def _stage_plot(rows: Sequence[Row], report: BenchmarkReport) -> Iterator[Plot]:
    """Plot the stages of a picture as stacked bars, one bar per row."""
    totals = {r.name: sum(r.stages.values()) for r in rows if r.stages and not r.failed}
    measured = sorted(map(report.row, totals), key=lambda row: totals[row.name])
    others = sorted({stage for row in measured for stage in row.stages} - set(STAGES))
    figure = go.Figure()
    for index, stage in enumerate([*STAGES, *others]):
        if any(stage in row.stages for row in measured):
            _add_stage_bars(figure, stage, _STAGE_COLOURS[index % len(_STAGE_COLOURS)], measured)
    _add_bar_labels(figure, measured, totals, report, "ms")
    figure.update_layout(barmode="stack")
    caption = "From a picture's bytes to its mask's, in memory: where the time goes."
    title = "The whole way, stage by stage, ms"
    yield from _create_plot("stages", title, caption, figure, len(measured))


def _add_stage_bars(figure: go.Figure, stage: str, colour: str, rows: Sequence[Row]) -> None:
    """Add the bars of one stage, one bar per row."""
    times = [row.stages.get(stage, 0.0) for row in rows]
    figure.add_bar(
        x=times,
        y=list(range(len(rows))),
        name=_plot_label(stage),
        meta="■",
        orientation="h",
        width=_BAR_WIDTH,
        marker={"color": colour},
        hovertext=[
            f"{_plot_label(stage)}: {format_number(time)} ms<br>{_plot_label(row.name)}"
            for time, row in zip(times, rows, strict=True)
        ],
        hoverinfo="text",
    )


def _size_plots(rows: Sequence[Row], report: BenchmarkReport) -> Iterator[Plot]:
    """Plot memory, GPU memory and size of the files. A plot without values is left out."""
    fields = (
        ("memory", "Memory, MB", "memory_mb", "Beyond what Python alone needs, at the most."),
        ("gpu", "Memory of the GPU, MB", "gpu_mb", "After the first call."),
        ("files", "Size of the files, MB", "size_mb", "All files of the artifact together."),
    )
    for key, title, field, explanation in fields:
        known = {row.name: getattr(row, field) for row in rows if not row.failed}
        values = {name: value for name, value in known.items() if value}  # 0 MB means unknown
        figure = _bar_figure(values, report, "MB")
        caption = f"The shorter, the smaller. {explanation}"
        yield from _create_plot(key, title, caption, figure, len(values), rows=rows)


PLOTS: tuple[Callable[[Sequence[Row], BenchmarkReport], Iterator[Plot]], ...] = (
    _latency_plot,
    _trade_off_plot,
    _stage_plot,
    _size_plots,
)


def _bar_figure(
    values: Mapping[str, float],
    report: BenchmarkReport,
    unit: str,
    error_bars: Callable[[Sequence[Row]], dict[str, object]] | None = None,
) -> go.Figure:
    """Draw a bar for each row that has a value, shortest first, in the style of its kind."""
    rows = sorted(map(report.row, values), key=lambda row: values[row.name])
    figure = go.Figure()
    for kind, style in STYLES.items():
        selected = [row for row in rows if row_kind(row, report) == kind]
        if selected:
            figure.add_bar(
                x=[values[row.name] for row in selected],
                y=[rows.index(row) for row in selected],
                ids=[one_line(row.name) for row in selected],
                hovertext=[_hover_text(row) for row in selected],
                hoverinfo="text",
                orientation="h",
                width=_BAR_WIDTH,
                name=style.name,
                meta=style.bar_sign,
                marker={
                    "color": style.colour,
                    "pattern": {"shape": style.hatch, "size": 7},
                    "line": _outline(selected),
                },
                error_x=error_bars(selected) if error_bars else None,
            )
    _add_bar_labels(figure, rows, values, report, unit)
    return figure


def _outline(rows: Sequence[Row]) -> dict[str, object]:
    """Return the outlines of bars or markers, in the colours of the rows' backends."""
    return {"color": [backend_colour(row.backend) for row in rows], "width": _OUTLINE_WIDTH}


def backend_colour(name: str) -> str:
    """The colour that a backend chose for its rows; gray for one that is not installed here."""
    try:
        return registry.load(name).plot_colour
    except U2ExportError:
        return _GRAY


def backend_legend(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Sign, colour and name of each backend that has rows."""
    names = dict.fromkeys(row.backend for row in rows)
    return [("□", backend_colour(name), f"outline: {_plot_label(name)}") for name in names]


def _add_bar_labels(
    figure: go.Figure,
    rows: Sequence[Row],
    values: Mapping[str, float],
    report: BenchmarkReport,
    unit: str,
) -> None:
    """Write name and value above each bar. Beside it they would leave a telephone no bar."""
    numbers = {row.name: number for number, row in enumerate(ranked_rows(report), 1)}
    for index, row in enumerate(rows):
        style = STYLES[row_kind(row, report)]
        value = f"{format_number(values[row.name])} {unit}"
        text = f"{numbers[row.name]}  {style.label_prefix}{_plot_label(row.name)}: {value}"
        figure.add_annotation(
            text=f"<b>{text}</b>" if style is STYLES["best"] else text,
            x=0,
            y=index - _BAR_WIDTH / 2,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            borderpad=0,
        )
    figure.update_yaxes(visible=False, range=[len(rows) - 0.6, -0.7])
    figure.update_xaxes(ticksuffix=f" {unit}", rangemode="tozero", nticks=6)


def _create_plot(
    key: str,
    title: str,
    caption: str,
    figure: go.Figure,
    count: int,
    height: int = 0,
    *,
    rows: Sequence[Row] = (),
) -> Iterator[Plot]:
    """Yield the figure as a plot of the page; nothing if it shows `count` = 0 rows.

    The legend names the backends of `rows` by their outlines.
    """
    if count == 0:
        return
    height = height or _BAR_PITCH * count + 50
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 16, "t": 8, "b": 32},
        font={"color": _GRAY, "size": 13, "family": "system-ui, sans-serif"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,  # the page's legend wraps, and takes no height from the bars
        dragmode=False,  # a finger on a plot scrolls the page
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRAY, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRAY, automargin=True)
    legend = tuple((trace.meta, trace.marker.color or _GRAY, trace.name) for trace in figure.data)
    legend += tuple(backend_legend(rows))
    alt_text, figure_json = _alt_text(title, figure), _embeddable_json(figure)
    yield Plot(key, title, caption, alt_text, legend, height, figure_json)


def _alt_text(title: str, figure: go.Figure) -> str:
    """Return title and labels of a plot."""
    texts = [annotation.text for annotation in figure.layout.annotations]
    labels = [html.unescape(text.removeprefix("<b>").removesuffix("</b>")) for text in texts]
    return "; ".join([title, *labels])


def _embeddable_json(figure: go.Figure) -> str:
    """Return the figure as JSON that cannot end its script element."""
    text: str = figure.to_json()
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hover_text(row: Row) -> str:
    """Return the lines that a plot shows under the pointer."""
    lines = {
        "": f"<b>{_plot_label(row.name)}</b>",
        "mask: ": _plot_label(verdict_text(row)),
        "ms a picture: ": latency_text(row),
        "memory, MB: ": format_number(row.memory_mb),
        "files, MB: ": format_number(row.size_mb or None),
    }
    return "<br>".join(f"{name}{text}" for name, text in lines.items() if text)


def _plot_label(text: str) -> str:
    """Shorten a text in its middle, and escape it: plotly reads tags and entities."""
    label = one_line(text)
    if len(label) > _MAX_LABEL_LENGTH:
        label = f"{label[: _MAX_LABEL_LENGTH // 2]}…{label[1 - _MAX_LABEL_LENGTH // 2 :]}"
    return html.escape(label, quote=False)
