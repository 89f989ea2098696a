"""A benchmark as text for the terminal, and phrases that all its formats share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from rich.console import JustifyMethod
from rich.table import Column, Table

from u2export.benchmark.recommend import equally_fast
from u2export.benchmark.report import BenchmarkReport, Ratio, Row
from u2export.reports.table import render_tables
from u2export.reports.text import printable

RowState = Literal["right", "wrong", "unjudged", "failed"]
COLUMNS = (
    "name",
    "ms a picture",
    "to the baseline",
    "pictures/s",
    "memory, MB",
    "files, MB",
    "worst IoU",
    "verdict",
    "what ran",
)
_TEXT_COLUMNS = (0, 7, 8)  # aligned to the left; numbers are aligned to the right
# Characters of the columns with figures. No interval is broken, and names get the rest.
_FIGURE_WIDTHS = {2: 13, 3: 8, 4: 7, 5: 6, 6: 6}
_MAX_NAME_WIDTH = 24
_PERCENTILES = ("p90", "p95", "p99")
_EXPONENT_LIMIT = 999.5  # from here on, three significant digits would need an exponent
_VERDICTS = {"right": "right", "wrong": "WRONG MASK", "unjudged": "not compared"}


def format_benchmark(report: BenchmarkReport) -> str:
    """Format a table with one line per row, followed by the winner and remarks."""
    rows = [row_cells(row, report) for row in report.rows]
    name_width = min(max((len(row[0]) for row in rows), default=0), _MAX_NAME_WIDTH) or None
    table = Table(*_columns({0: name_width, **_FIGURE_WIDTHS}), padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    table_text = render_tables(table)
    comparison = f"{describe_comparison(report)}:"
    return "\n".join([comparison, table_text, headline(report), *remarks(report)])


def _columns(widths: Mapping[int, int | None]) -> Iterator[Column]:
    """Yield the columns of the table. Those without a width share the rest."""
    for index, title in enumerate(COLUMNS):
        alignment: JustifyMethod = "left" if index in _TEXT_COLUMNS else "right"
        yield Column(title, overflow="fold", justify=alignment, width=widths.get(index))


def describe_comparison(report: BenchmarkReport) -> str:
    """Name reference, pictures and baseline, in one line."""
    count = len(report.pictures)
    pictures = f"{count} picture" if count == 1 else f"{count} pictures"
    return (
        f"Masks against {one_line(report.reference)} on {pictures}; "
        f"speed against {one_line(report.baseline)}"
    )


def row_cells(row: Row, report: BenchmarkReport) -> list[str]:
    """Return the text of a row for each of `COLUMNS`; empty without a figure."""
    return [
        one_line(row.name),
        latency_text(row),
        ratio_text(row, report),
        format_number(row.throughput.pictures if row.throughput else None),
        format_number(row.memory_mb),
        format_number(row.size_mb or None),  # 0 means unknown
        format_iou(row.mask.worst_iou if row.mask else None),
        verdict_text(row),
        one_line(row.ran),
    ]


def headline(report: BenchmarkReport) -> str:
    """Name the fastest correct row and those as fast, or say that there is none."""
    winner = report.winner
    if winner is None:
        return "no row was measured and has the right mask: there is no winner"
    equal = equally_fast([row for row in report.rows if row.is_correct and row.latency])
    others = [one_line(row.name) for row in equal if row is not winner]
    as_fast = f"; as fast within the noise: {', '.join(others)}" if others else ""
    name, ms = one_line(winner.name), format_number(winner.picture_ms)
    return f"fastest with the right mask: {name}, {ms} ms a picture{as_fast}"


def remarks(report: BenchmarkReport) -> list[str]:
    """Return remarks, one sentence each: wrong masks first, notes last."""
    wrong, failed = rows_in_state("wrong", report), rows_in_state("failed", report)
    lines = [f"{one_line(row.name)} has the WRONG MASK{_mask_problem(row)}" for row in wrong]
    lines += [f"{one_line(row.name)} failed: {row_reason(row)}" for row in failed]
    lines += list(_percentile_remarks(report))
    if not report.stable:
        lines.append(
            "The intervals are wider than they should be: the machine was not quiet. "
            "Measure again before you rely on small differences."
        )
    lines += [
        f"{one_line(row.name)}: {one_line(note)}" for row in report.rows for note in row.notes
    ]
    return lines + [one_line(note) for note in report.notes]


def _mask_problem(row: Row) -> str:
    worst_picture = row.mask.worst_picture if row.mask else ""
    reason = f": {row_reason(row)}" if row_reason(row) else ""
    return f"{reason}; worst on '{one_line(worst_picture)}'" if worst_picture else reason


def _percentile_remarks(report: BenchmarkReport) -> Iterator[str]:
    """Yield the percentiles of rows with enough samples."""
    for row in report.rows:
        values = [(name, getattr(row.latency, name, None)) for name in _PERCENTILES]
        known = [f"{name} {format_number(value)} ms" for name, value in values if value is not None]
        if known:
            call = "picture" if row.batch == 1 else f"call of {row.batch} pictures"
            yield f"{one_line(row.name)}: {', '.join(known)} a {call}"


def row_state(row: Row) -> RowState:
    """Classify a row."""
    if row.failed:
        return "failed"
    if row.mask is None:
        return "unjudged"
    return "right" if row.is_correct else "wrong"


def rows_in_state(state: RowState, report: BenchmarkReport) -> list[Row]:
    """Return the rows in a state, in the report's order."""
    return [row for row in report.rows if row_state(row) == state]


def verdict_text(row: Row) -> str:
    """Describe the state of a row, with the reason if it failed or was not compared."""
    state, reason = row_state(row), row_reason(row)
    text = _VERDICTS.get(state, state)
    return f"{text}: {reason}" if reason and state in ("unjudged", "failed") else text


def row_reason(row: Row) -> str:
    """Return why a row is not correct, as a phrase; empty if it is, or without a reason."""
    if row.failed:
        return one_line(row.failed)
    return one_line("; ".join(row.mask.reasons) if row.mask else row.unjudged)


def picture_interval(row: Row) -> tuple[float, float, float] | None:
    """Return median, lower end and upper end of the time per picture, ms.

    Returns:
        None if the row failed or has no latency.
    """
    latency = row.latency
    if latency is None or row.failed:
        return None
    return latency.median / row.batch, latency.low / row.batch, latency.high / row.batch


def latency_text(row: Row) -> str:
    """Format the time per picture with its interval, ms; empty without a latency."""
    interval = picture_interval(row)
    return _format_interval(*interval) if interval else ""


def ratio_text(row: Row, report: BenchmarkReport) -> str:
    """Format the ratio to the baseline with interval and verdict; empty without a ratio."""
    if row.name == report.baseline:
        return "baseline" if picture_interval(row) else ""
    ratio = find_ratio(row, report)
    if ratio is None:
        return ""
    return f"{_format_interval(ratio.ratio, ratio.low, ratio.high)} {one_line(ratio.verdict)}"


def find_ratio(row: Row, report: BenchmarkReport) -> Ratio | None:
    """Return the row's ratio to the baseline; None without one."""
    return next((ratio for ratio in report.ratios if ratio.name == row.name), None)


def _format_interval(value: float, low: float, high: float) -> str:
    return f"{format_number(value)} ({format_number(low)}–{format_number(high)})"


def format_number(value: float | None) -> str:
    """Format three significant digits without an exponent; empty without a value.

    A benchmark is not more precise than three digits.
    """
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= _EXPONENT_LIMIT else f"{value:.3g}"


def format_iou(value: float | None) -> str:
    """Format an intersection over union with four decimals; empty without a value."""
    return "" if value is None else f"{value:.4f}"


def one_line(text: str) -> str:
    """Return the text in one line, with `?` for characters that a terminal cannot print."""
    return "".join(c if c.isprintable() else "?" for c in printable(" ".join(text.split())))
