"""A benchmark as one HTML page with interactive plots that needs nothing but itself."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined, Template
from PIL import Image
from plotly.offline import get_plotlyjs

from u2export.bench.report import STAGES, BenchReport, Row
from u2export.bench.text import (
    about,
    against,
    headline,
    iou,
    latency,
    line,
    number,
    of,
    ratio,
    span,
    state,
    told,
    verdict,
)
from u2export.parity.html import box_of, gray, heat_map, uri
from u2export.parity.shown import Shown

FLOOR = 1e-6  # where the logarithmic axis draws a mask error of zero
_LONGEST = 28  # characters of a name in a plot, so that it fits a telephone
_PITCH = 54  # pixels from bar to bar: a line of text and the bar below it
_BAR = 0.42  # of that is the bar
_SMALL, _LARGE = 12.0, 38.0  # pixels of the markers of no memory and of the most
_GRAY = "#7b7f86"  # is read on white and on black
_GRID = "rgba(123,127,134,0.25)"


@dataclass(frozen=True)
class _Style:
    """How the rows of a kind are drawn: not by colour alone."""

    name: str
    colour: str
    hatch: str
    symbol: str
    sign: str  # before a bar's label
    swatches: tuple[str, str]  # for the legend: as a bar and as a marker


_UNTIMED = "no time was measured"
_FRONT = "best trade-offs"
# The order is that of the legend.
_STYLES = {
    "best": _Style("fastest with the right mask", "#1f8f4d", "", "star", "★ ", ("■", "★")),
    "right": _Style("right mask", "#4a86c5", "", "circle", "", ("■", "●")),
    "wrong": _Style("WRONG MASK", "#d6303b", "/", "x", "✘ ", ("▨", "✖")),
    "unjudged": _Style("mask not compared", "#9a9fa6", ".", "circle-open", "? ", ("▒", "○")),
}
_STAGE_COLOURS = ("#5aa9a3", "#86c06c", "#c9b23a", "#4a86c5", "#a98bd0", "#d98a4e", "#c9709a")


@dataclass(frozen=True)
class _Plot:
    """A plot: its title, what to look at, the same in words for those who cannot see it."""

    key: str
    title: str
    means: str
    words: str
    legend: tuple[tuple[str, str, str], ...]  # sign, its colour, what it stands for
    height: int
    json: str


@dataclass(frozen=True)
class _Line:
    """A row of the table: its number in the plots, what became of it, its figures by column."""

    number: int
    row: Row
    kind: str
    cells: dict[str, str]


@dataclass(frozen=True)
class _Exhibit:
    """A picture with its masks: panels are title and address of each."""

    shown: Shown
    kind: str
    panels: tuple[tuple[str, str], ...]
    apart: str


def page(report: BenchReport, shown: Sequence[Shown]) -> str:
    """Write the page: winner, plots, figures, masks, and what was run where.

    Args:
        report: what was measured.
        shown: masks to be looked at, in this order; their candidates are names of rows.

    Returns:
        HTML with everything in it, plotly.js too (5 MB); it asks no server for anything.
    """
    rows = _ranked(report)
    lines = [_line(place, row, report) for place, row in enumerate(rows, 1)]
    return _template().render(
        report=report,
        headline=headline(report),
        about=about(report),
        gain=_gain(report),
        quicker=_quicker(report),
        told=told(report),
        plots=[plot for draw in _PLOTS for plot in draw(rows, report)],
        lines=lines,
        heads=[head for head in _heads(lines) if any(one.cells[head] for one in lines)],
        failed=[(row.name, row.failed or _UNTIMED) for row in rows if span(row) is None],
        exhibits=[_exhibit(one, report) for one in shown],
        number=number,
        plotly=get_plotlyjs(),
    )


def _template() -> Template:
    environment = Environment(
        autoescape=True,
        finalize=_cleaned,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = resources.files("u2export.bench").joinpath("report.html.j2")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _cleaned(value: object) -> object:
    """What the template is about to write; of texts, as one line that can be written."""
    return line(value) if type(value) is str else value


def _ranked(report: BenchReport) -> list[Row]:
    """The rows, fastest first; those that were not measured last."""
    return sorted(report.rows, key=lambda row: (span(row) or (math.inf,))[0])


def _kind(row: Row, report: BenchReport) -> str:
    """What became of the row, or `best` where it is the winner."""
    return "best" if report.winner is not None and row.name == report.winner.name else state(row)


def _gain(report: BenchReport) -> str:
    """How much faster than the baseline the winner is; empty where that is not known."""
    found = against(report.winner, report) if report.winner else None
    if found is None or found.verdict != "faster" or found.ratio <= 0:
        return ""
    return f"{number(1 / found.ratio)} times as fast as {line(report.baseline)}"


def _quicker(report: BenchReport) -> list[str]:
    """Rows that would have won if speed were all."""
    best = span(report.winner) if report.winner else None
    limit = best[0] if best else math.inf
    return [
        f"{line(row.name)} takes only {number(found[0])} ms, but its mask is wrong"
        for row in of("wrong", report)
        if (found := span(row)) and found[0] < limit
    ]


# --- plots ---------------------------------------------------------------------------------------


def _latencies(rows: Sequence[Row], report: BenchReport) -> Iterator[_Plot]:
    """A bar a row, with its interval."""
    values = {row.name: found[0] for row in rows if (found := span(row))}
    figure = _bars(values, report, "ms", _whiskers)
    means = "The shorter, the faster. The thin line is the 95 % interval of the median."
    yield from _plot("latency", "Time of a picture, ms", means, figure, len(values))


def _whiskers(rows: Sequence[Row]) -> dict[str, object]:
    """The intervals of measured rows, as plotly draws them."""
    known = [found for row in rows if (found := span(row))]
    return {
        "array": [max(high - middle, 0) for middle, _, high in known],
        "arrayminus": [max(middle - low, 0) for middle, low, _ in known],
        "color": _GRAY,
        "thickness": 2,
    }


def _trade(rows: Sequence[Row], report: BenchReport) -> Iterator[_Plot]:
    """Time against mask error: what costs nothing lies left and below."""
    places = _places(rows)
    figure = go.Figure()
    front = _front([places[row.name] for row in rows if row.name in places and row.right])
    if len(front) > 1:
        x, y = zip(*front, strict=True)
        dotted = {"color": _GRAY, "dash": "dot", "shape": "hv"}
        figure.add_scatter(
            x=x, y=y, mode="lines", line=dotted, hoverinfo="skip", name=_FRONT, meta="┄"
        )
    most = max((row.memory_mb or 0.0 for row in rows), default=0.0)
    for kind, style in _STYLES.items():
        known = [(place, row) for place, row in enumerate(rows, 1) if row.name in places]
        drawn = [(place, row) for place, row in known if _kind(row, report) == kind]
        if drawn:
            _markers(figure, style, drawn, places, most)
    axis = {"font": {"size": 13}, "standoff": 12}
    figure.update_xaxes(title={"text": "ms a picture", **axis}, rangemode="tozero")
    figure.update_yaxes(title={"text": "1 - IoU of the worst picture", **axis}, type="log")
    figure.update_yaxes(exponentformat="power", dtick=1, tickfont={"size": 12})
    means = (
        "Left is faster, below is closer to the reference. The larger, the more memory. "
        f"The numbers are those of the bars above; no error at all is drawn at {FLOOR:.6f}."
    )
    yield from _plot("trade", "Speed against mask error", means, figure, len(places), 420)


def _places(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Time of a picture, ms, and error of the worst mask, of the rows where both are known."""
    return {
        row.name: (found[0], max(1 - row.mask.worst_iou, FLOOR))
        for row in rows
        if (found := span(row)) and row.mask and row.mask.worst_iou is not None
    }


def _front(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that nothing beats in both: each is closer than everything that is faster."""
    front: list[tuple[float, float]] = []
    for place in sorted(places):
        if not front or place[1] < front[-1][1]:
            front.append(place)
    return front


def _markers(
    figure: go.Figure,
    style: _Style,
    drawn: Sequence[tuple[int, Row]],
    places: Mapping[str, tuple[float, float]],
    most: float,
) -> None:
    """Draw the numbered rows of a kind; `most` is the largest memory, MB."""
    share = [(row.memory_mb or 0.0) / most if most > 0 else 0.0 for _, row in drawn]
    # By the root: what the eye compares is the area.
    size = [_SMALL + (_LARGE - _SMALL) * math.sqrt(max(one, 0.0)) for one in share]
    figure.add_scatter(
        x=[places[row.name][0] for _, row in drawn],
        y=[places[row.name][1] for _, row in drawn],
        ids=[line(row.name) for _, row in drawn],
        text=[str(place) for place, _ in drawn],
        textposition="middle right",
        hovertext=[_hover(row) for _, row in drawn],
        hoverinfo="text",
        mode="markers+text",
        name=style.name,
        meta=style.swatches[1],
        marker={"color": style.colour, "symbol": style.symbol, "size": size, "opacity": 0.85},
    )


def _ways(rows: Sequence[Row], report: BenchReport) -> Iterator[_Plot]:
    """The stages of a picture's way behind each other, a bar a row."""
    totals = {r.name: sum(r.stages.values()) for r in rows if r.stages and not r.failed}
    known = sorted(map(report.row, totals), key=lambda row: totals[row.name])
    others = sorted({name for row in known for name in row.stages} - set(STAGES))
    figure = go.Figure()
    for place, name in enumerate([*STAGES, *others]):
        if not any(name in row.stages for row in known):
            continue
        times = [row.stages.get(name, 0.0) for row in known]
        figure.add_bar(
            x=times,
            y=list(range(len(known))),
            name=_label(name),
            meta="■",
            orientation="h",
            width=_BAR,
            marker={"color": _STAGE_COLOURS[place % len(_STAGE_COLOURS)]},
            hovertext=[f"{_label(name)}: {number(time)} ms<br>{_label(row.name)}"
                       for time, row in zip(times, known, strict=True)],
            hoverinfo="text",
        )  # fmt: skip
    _labelled(figure, known, totals, report, "ms")
    figure.update_layout(barmode="stack")
    means = "From a picture's bytes to its mask's, in memory: where the time goes."
    yield from _plot("stages", "The whole way, stage by stage, ms", means, figure, len(known))


def _sizes(rows: Sequence[Row], report: BenchReport) -> Iterator[_Plot]:
    """Memory, memory of the GPU, files: a plot each, where there is something to draw."""
    fields = (
        ("memory", "Memory, MB", "memory_mb", "Beyond what Python alone needs, at the most."),
        ("gpu", "Memory of the GPU, MB", "gpu_mb", "After the first call."),
        ("files", "Size of the files, MB", "size_mb", "All files of the artifact together."),
    )
    for key, title, field, means in fields:
        values = {row.name: getattr(row, field) for row in rows if not row.failed}
        # A file of no bytes is one that was not told.
        values = {name: value for name, value in values.items() if value}
        figure = _bars(values, report, "MB")
        yield from _plot(key, title, f"The shorter, the smaller. {means}", figure, len(values))


_PLOTS: tuple[Callable[[Sequence[Row], BenchReport], Iterator[_Plot]], ...] = (
    _latencies,
    _trade,
    _ways,
    _sizes,
)


def _bars(
    values: Mapping[str, float],
    report: BenchReport,
    unit: str,
    whiskers: Callable[[Sequence[Row]], dict[str, object]] | None = None,
) -> go.Figure:
    """A bar for each row that has a value, shortest first, drawn by what became of the row."""
    known = sorted(map(report.row, values), key=lambda row: values[row.name])
    figure = go.Figure()
    for kind, style in _STYLES.items():
        drawn = [row for row in known if _kind(row, report) == kind]
        if drawn:
            figure.add_bar(
                x=[values[row.name] for row in drawn],
                y=[known.index(row) for row in drawn],
                ids=[line(row.name) for row in drawn],
                hovertext=[_hover(row) for row in drawn],
                hoverinfo="text",
                orientation="h",
                width=_BAR,
                name=style.name,
                meta=style.swatches[0],
                marker={"color": style.colour, "pattern": {"shape": style.hatch, "size": 7}},
                error_x=whiskers(drawn) if whiskers else None,
            )
    _labelled(figure, known, values, report, unit)
    return figure


def _labelled(
    figure: go.Figure,
    rows: Sequence[Row],
    values: Mapping[str, float],
    report: BenchReport,
    unit: str,
) -> None:
    """Write name and value above each bar: beside it they would leave a telephone no bar."""
    numbers = {row.name: place for place, row in enumerate(_ranked(report), 1)}
    for place, row in enumerate(rows):
        style = _STYLES[_kind(row, report)]
        text = f"{style.sign}{_label(row.name)}: {number(values[row.name])} {unit}"
        text = f"{numbers[row.name]}  {text}"
        figure.add_annotation(
            text=f"<b>{text}</b>" if style is _STYLES["best"] else text,
            x=0,
            y=place - _BAR / 2,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            borderpad=0,
        )
    figure.update_yaxes(visible=False, range=[len(rows) - 0.6, -0.7])
    figure.update_xaxes(ticksuffix=f" {unit}", rangemode="tozero", nticks=6)


def _plot(
    key: str, title: str, means: str, figure: go.Figure, count: int, height: int = 0
) -> Iterator[_Plot]:
    """The figure for the page; nothing where `count`, the number of what is drawn, is 0."""
    if count == 0:
        return
    height = height or _PITCH * count + 50
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 16, "t": 8, "b": 32},
        font={"color": _GRAY, "size": 13, "family": "system-ui, sans-serif"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,  # the page's own legend wraps, and takes no height from the bars
        dragmode=False,  # a finger on a plot must still scroll the page
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRAY, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRAY, automargin=True)
    legend = tuple((one.meta, one.marker.color or _GRAY, one.name) for one in figure.data)
    yield _Plot(key, title, means, _spoken(title, figure), legend, height, _embedded(figure))


def _spoken(title: str, figure: go.Figure) -> str:
    """A plot's labels one after the other, for those who cannot see it."""
    labels = [html.unescape(one.text.removeprefix("<b>").removesuffix("</b>"))
              for one in figure.layout.annotations]  # fmt: skip
    return "; ".join([title, *labels])


def _embedded(figure: go.Figure) -> str:
    """The figure as JSON that cannot end the element it stands in."""
    text: str = figure.to_json()
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hover(row: Row) -> str:
    """What a plot tells of a row that is pointed at: a few lines."""
    parts = {
        "": f"<b>{_label(row.name)}</b>",
        "mask: ": _label(verdict(row)),
        "ms a picture: ": latency(row),
        "memory, MB: ": number(row.memory_mb),
        "files, MB: ": number(row.size_mb or None),
    }
    return "<br>".join(f"{name}{text}" for name, text in parts.items() if text)


def _label(text: str) -> str:
    """A text, shortened in its middle, that plotly shows as it is: it reads tags and entities."""
    kept = line(text)
    if len(kept) > _LONGEST:
        kept = f"{kept[: _LONGEST // 2]}…{kept[1 - _LONGEST // 2 :]}"
    return html.escape(kept, quote=False)


# --- figures -------------------------------------------------------------------------------------


def _line(place: int, row: Row, report: BenchReport) -> _Line:
    return _Line(place, row, _kind(row, report), {**_speed(row, report), **_rest(row)})


def _heads(lines: Sequence[_Line]) -> list[str]:
    """The table's columns."""
    return list(lines[0].cells) if lines else []


def _speed(row: Row, report: BenchReport) -> dict[str, str]:
    """What a row says of time, by column."""
    found, best = row.latency, row.throughput
    tail = (found.p90, found.p95, found.p99) if found else ()
    tails = " / ".join(number(one) or "–" for one in tail) if any(tail) else ""
    return {
        "Verdict": verdict(row),
        "ms a picture": latency(row),
        "To the baseline": ratio(row, report),
        "p90 / p95 / p99 of a call, ms": tails,
        "Samples": str(found.count) if found else "",
        "Pictures/s": f"{number(best.pictures)} with {best.how}" if best else "",
        "Import, ms": number(row.import_ms),
        "Load, ms": number(row.load_ms),
        "First call, ms": number(row.first_ms),
        "On the GPU, without copies, ms": number(row.gpu_ms),
        "CPU time a picture, ms": number(row.cpu_ms),
        "Joules a picture": number(row.joules),
    }


def _rest(row: Row) -> dict[str, str]:
    """What a row says of memory, masks and what ran, by column."""
    mask = row.mask
    worst = f"{iou(mask.worst_iou)} {mask.worst_picture}".strip() if mask else ""
    return {
        "Memory, MB": number(row.memory_mb),
        "Python alone, MB": number(row.baseline_mb),
        "GPU memory, MB": number(row.gpu_mb),
        "Files, MB": number(row.size_mb or None),
        "Mask MAE": number(mask.mae) if mask else "",
        "Mask IoU": iou(mask.iou) if mask else "",
        "Worst IoU": worst,
        "Pictures compared": str(mask.pictures) if mask else "",
        "Backend": f"{row.backend} {row.runtime}".strip(),
        "Precision": row.precision,
        "Device": f"{row.device}, {row.threads} threads",
        "Batch": str(row.batch),
        "Input, pixels": str(row.size),
        "What ran": row.ran,
    }


# --- masks ---------------------------------------------------------------------------------------


def _exhibit(shown: Shown, report: BenchReport) -> _Exhibit:
    """The picture, both masks and where they differ, all in the picture's proportions."""
    # A network that overflowed gives masks of no number; they are drawn as black.
    reference, found = np.nan_to_num(shown.reference), np.nan_to_num(shown.found)
    box = box_of(shown.picture)
    panels = [
        ("picture", uri(Image.fromarray(shown.picture), box)),
        ("reference's mask", uri(gray(reference), box)),
        ("candidate's mask", uri(gray(found), box)),
    ]
    apart = "The masks are of different sizes."
    if reference.shape == found.shape:
        panels.append(("difference", uri(heat_map(reference, found, box), box)))
        gap = np.abs(reference - found)
        apart = f"They differ by {gap.max():.3g} at most and by {gap.mean():.3g} on average."
    kinds = [_kind(row, report) for row in report.rows if row.name == shown.candidate]
    return _Exhibit(shown, kinds[0] if kinds else "unjudged", tuple(panels), apart)
