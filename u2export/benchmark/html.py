"""A benchmark as one HTML page with interactive plots. It loads nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from PIL import Image
from plotly.offline import get_plotlyjs

from u2export.benchmark.plots import PLOTS, ranked_rows, row_kind
from u2export.benchmark.report import BenchmarkReport, Latency, Row
from u2export.benchmark.text import (
    describe_comparison,
    find_ratio,
    format_iou,
    format_number,
    headline,
    latency_text,
    one_line,
    picture_interval,
    ratio_text,
    remarks,
    rows_in_state,
    verdict_text,
)
from u2export.reports.heat_map import data_uri, heat_map, thumbnail_size, to_gray_image
from u2export.reports.mask_pair import MaskPair

_NO_LATENCY = "no time was measured"


@dataclass(frozen=True)
class _TableRow:
    """A line of the table.

    Attributes:
        number: its number in the plots.
        row: row of the report.
        kind: as for `row_kind`.
        cells: text by column.
    """

    number: int
    row: Row
    kind: str
    cells: dict[str, str]


@dataclass(frozen=True)
class _MaskPanels:
    """A picture with its masks.

    Attributes:
        mask_pair: the masks.
        kind: kind of the candidate's row, as for `row_kind`.
        panels: title and data address of each image.
        difference: how far the masks differ, as a sentence.
    """

    mask_pair: MaskPair
    kind: str
    panels: tuple[tuple[str, str], ...]
    difference: str


def benchmark_page(report: BenchmarkReport, mask_pairs: Sequence[MaskPair]) -> str:
    """Write the page: winner, plots, figures, masks, machine and versions.

    Args:
        report: the benchmark.
        mask_pairs: masks to show, in this order. Their candidates are names of rows.

    Returns:
        HTML that contains everything, plotly.js included (5 MB). It asks no server for anything.
    """
    rows = ranked_rows(report)
    table_rows = [_table_row(number, row, report) for number, row in enumerate(rows, 1)]
    without_latency = [row for row in rows if picture_interval(row) is None]
    return _template().render(
        report=report,
        headline=headline(report),
        comparison=describe_comparison(report),
        speedup=_speedup(report),
        fast_but_wrong=_fast_but_wrong(report),
        remarks=remarks(report),
        plots=[plot for create_plots in PLOTS for plot in create_plots(rows, report)],
        table_rows=table_rows,
        columns=_filled_columns(table_rows),
        not_measured=[(row.name, row.failed or _NO_LATENCY) for row in without_latency],
        mask_panels=[_mask_panels(mask_pair, report) for mask_pair in mask_pairs],
        format_number=format_number,
        plotly=get_plotlyjs(),
    )


def _template() -> Template:
    environment = Environment(
        autoescape=True,
        finalize=_printable_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = resources.files("u2export.benchmark").joinpath("report.html.j2")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _printable_value(value: object) -> object:
    """Convert a text that the template writes to one printable line; leave other values."""
    return one_line(value) if type(value) is str else value


def _speedup(report: BenchmarkReport) -> str:
    """Say how much faster than the baseline the winner is; empty if it is not, or unknown."""
    ratio = find_ratio(report.winner, report) if report.winner else None
    if ratio is None or ratio.verdict != "faster" or ratio.ratio <= 0:
        return ""
    return f"{format_number(1 / ratio.ratio)} times as fast as {one_line(report.baseline)}"


def _fast_but_wrong(report: BenchmarkReport) -> list[str]:
    """Name the rows that are faster than the winner, with the wrong mask."""
    winner_interval = picture_interval(report.winner) if report.winner else None
    winner_ms = winner_interval[0] if winner_interval else math.inf
    return [
        f"{one_line(row.name)} takes only {format_number(interval[0])} ms, but its mask is wrong"
        for row in rows_in_state("wrong", report)
        if (interval := picture_interval(row)) and interval[0] < winner_ms
    ]


def _table_row(number: int, row: Row, report: BenchmarkReport) -> _TableRow:
    cells = {**_time_cells(row, report), **_other_cells(row)}
    return _TableRow(number, row, row_kind(row, report), cells)


def _filled_columns(table_rows: Sequence[_TableRow]) -> list[str]:
    """Return the columns with a text in at least one line."""
    columns = table_rows[0].cells if table_rows else {}
    return [column for column in columns if any(line.cells[column] for line in table_rows)]


def _time_cells(row: Row, report: BenchmarkReport) -> dict[str, str]:
    """Return verdict and times of a row, by column."""
    latency, throughput = row.latency, row.throughput
    rate = f"{format_number(throughput.pictures)} with {throughput.how}" if throughput else ""
    return {
        "Verdict": verdict_text(row),
        "ms a picture": latency_text(row),
        "To the baseline": ratio_text(row, report),
        "p90 / p95 / p99 of a call, ms": _percentiles(latency) if latency else "",
        "Samples": str(latency.sample_count) if latency else "",
        "Pictures/s": rate,
        "Import, ms": format_number(row.import_ms),
        "Load, ms": format_number(row.load_ms),
        "First call, ms": format_number(row.first_ms),
        "On the GPU, without copies, ms": format_number(row.gpu_ms),
        "CPU time a picture, ms": format_number(row.cpu_ms),
        "Joules a picture": format_number(row.joules),
    }


def _percentiles(latency: Latency) -> str:
    values = (latency.p90, latency.p95, latency.p99)
    return " / ".join(format_number(value) or "–" for value in values) if any(values) else ""


def _other_cells(row: Row) -> dict[str, str]:
    """Return memory, masks and runtime of a row, by column."""
    mask = row.mask
    return {
        "Memory, MB": format_number(row.memory_mb),
        "Python alone, MB": format_number(row.baseline_mb),
        "GPU memory, MB": format_number(row.gpu_mb),
        "Files, MB": format_number(row.size_mb or None),
        "Mask MAE": format_number(mask.mae) if mask else "",
        "Mask IoU": format_iou(mask.iou) if mask else "",
        "Worst IoU": f"{format_iou(mask.worst_iou)} {mask.worst_picture}".strip() if mask else "",
        "Pictures compared": str(mask.pictures) if mask else "",
        "Backend": f"{row.backend} {row.runtime}".strip(),
        "Precision": row.precision,
        "Device": f"{row.device}, {row.threads} threads",
        "Batch": str(row.batch),
        "Input, pixels": str(row.size),
        "What ran": row.ran,
    }


def _mask_panels(mask_pair: MaskPair, report: BenchmarkReport) -> _MaskPanels:
    """Draw picture, both masks and their difference, all in the picture's proportions."""
    # A network that overflowed gives masks of NaN. They are drawn in black.
    reference = np.nan_to_num(mask_pair.reference_mask)
    candidate = np.nan_to_num(mask_pair.candidate_mask)
    size = thumbnail_size(mask_pair.picture)
    panels = [
        ("picture", data_uri(Image.fromarray(mask_pair.picture), size)),
        ("reference's mask", data_uri(to_gray_image(reference), size)),
        ("candidate's mask", data_uri(to_gray_image(candidate), size)),
    ]
    difference = "The masks are of different sizes."
    if reference.shape == candidate.shape:
        panels.append(("difference", data_uri(heat_map(reference, candidate, size), size)))
        gap = np.abs(reference - candidate)
        difference = f"They differ by {gap.max():.3g} at most and by {gap.mean():.3g} on average."
    kinds = [row_kind(row, report) for row in report.rows if row.name == mask_pair.candidate]
    return _MaskPanels(mask_pair, kinds[0] if kinds else "unjudged", tuple(panels), difference)
