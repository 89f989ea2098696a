"""A benchmark as Markdown for GitHub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from u2export.benchmark.report import BenchmarkReport
from u2export.benchmark.text import (
    COLUMNS,
    describe_comparison,
    format_number,
    headline,
    one_line,
    remarks,
    row_cells,
    row_state,
)
from u2export.reports.text import escape_markdown

_NUMBER_COLUMNS = 6  # they follow the name, and are aligned to the right


def markdown_page(report: BenchmarkReport) -> str:
    """Write results, machine and command. Times are per picture, in ms.

    Returns:
        GitHub's Markdown, ending in a newline.
    """
    lines = [
        f"## Benchmark: {_escape(headline(report))}",
        "",
        _escape(describe_comparison(report)),
        "",
        *_table(report),
        "",
    ]
    items = [f"- {_escape(remark)}" for remark in remarks(report)]
    lines += [*items, ""] if items else []
    return "\n".join([*lines, *_facts(report), ""])


def _table(report: BenchmarkReport) -> Iterator[str]:
    yield _table_line(list(COLUMNS))
    text_columns = len(COLUMNS) - 1 - _NUMBER_COLUMNS
    yield _table_line(["-", *["-:"] * _NUMBER_COLUMNS, *["-"] * text_columns])
    for row in report.rows:
        cells = [_escape(cell) for cell in row_cells(row, report)]
        if row == report.winner or row_state(row) in ("wrong", "failed"):
            cells[-2] = f"**{cells[-2]}**"
        yield _table_line(cells)


def _table_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _facts(report: BenchmarkReport) -> Iterator[str]:
    """Yield machine, versions, fixed work, date and command, one line each."""
    yield f"- Machine: {_fact_list(report.machine)}"
    yield f"- Versions: {_fact_list(report.versions)}"
    yield (
        f"- Calibration: a fixed piece of work took {format_number(report.calibration_ms)} ms; "
        f"the measurement took {format_number(report.seconds)} s"
    )
    yield f"- Date: {_escape(report.created)}"
    yield f"- Command: {_escape(report.command)}"


def _fact_list(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{_escape(name)} {_escape(value)}" for name, value in facts.items())


def _escape(text: str) -> str:
    return escape_markdown(one_line(text))
