"""A benchmark as a Markdown table for GitHub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from u2export.bench.report import BenchReport
from u2export.bench.text import HEADS, about, cells, headline, line, number, state, told
from u2export.parity.words import escaped

_FIGURES = 6  # columns after the name that hold numbers


def page(report: BenchReport) -> str:
    """Write what was measured, where and how.

    Returns:
        Markdown as GitHub reads it, ending in a newline. Times are of a picture, in ms.
    """
    lines = [f"## Benchmark: {_escaped(headline(report))}", "", _escaped(about(report)), ""]
    lines += [*_table(report), ""]
    remarks = told(report)
    lines += [*(f"- {_escaped(remark)}" for remark in remarks), *([""] if remarks else [])]
    return "\n".join([*lines, *_facts(report), ""])


def _table(report: BenchReport) -> Iterator[str]:
    yield _cells(list(HEADS))
    yield _cells(["-", *["-:"] * _FIGURES, *["-"] * (len(HEADS) - 1 - _FIGURES)])
    for row in report.rows:
        texts = [_escaped(cell) for cell in cells(row, report)]
        if row == report.winner or state(row) in ("wrong", "failed"):
            texts[-2] = f"**{texts[-2]}**"
        yield _cells(texts)


def _cells(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _facts(report: BenchReport) -> Iterator[str]:
    """Machine, versions, calibration, date and command: a line each."""
    yield f"- Machine: {_listed(report.machine)}"
    yield f"- Versions: {_listed(report.versions)}"
    yield (
        f"- Calibration: a fixed piece of work took {number(report.calibration_ms)} ms; "
        f"the measurement took {number(report.seconds)} s"
    )
    yield f"- Date: {_escaped(report.created)}"
    yield f"- Command: {_escaped(report.command)}"


def _listed(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{_escaped(name)} {_escaped(value)}" for name, value in facts.items())


def _escaped(text: str) -> str:
    return escaped(line(text))
