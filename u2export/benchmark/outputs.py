"""Output files and exit status of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from u2export.benchmark.candidates import CANNOT_RUN
from u2export.benchmark.masks import RANDOM_WEIGHTS
from u2export.benchmark.report import BenchmarkReport
from u2export.errors import DependencyError, ParityError, pip_command
from u2export.reports.mask_pair import MaskPair
from u2export.system.files import write_text


def write_reports(
    report: BenchmarkReport,
    mask_pairs: Sequence[MaskPair],
    *,
    html_file: Path | None = None,
    csv_file: Path | None = None,
    markdown_file: Path | None = None,
) -> None:
    """Write the report in the requested formats.

    Raises:
        InputError: a file cannot be written.
        DependencyError: a package for the HTML page is not installed.
    """
    from u2export.benchmark import csv_table, markdown

    if csv_file:
        write_text(csv_file, csv_table.csv_text(report))
    if markdown_file:
        write_text(markdown_file, markdown.markdown_page(report))
    if html_file:
        try:
            from u2export.benchmark import html
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"this form needs {error.name}: {pip_command('parity')}"
            ) from error
        write_text(html_file, html.benchmark_page(report, mask_pairs))


def raise_if_failed(report: BenchmarkReport) -> None:
    """Refuse a report with a row that was not measured or has the wrong mask.

    Raises:
        DependencyError: a runtime or a device is missing, and nothing else is wrong.
        ParityError: a row failed, or its mask is wrong.
    """
    wrong = [row for row in report.rows if row.mask and not row.mask.passed]
    failed = [row for row in report.rows if row.failed]
    not_compared = [row for row in report.rows if row.unjudged not in ("", RANDOM_WEIGHTS)]
    if wrong:
        raise ParityError(f"the mask is wrong: {', '.join(row.name for row in wrong)}")
    if failed:
        can_run = any(CANNOT_RUN not in row.failed for row in failed)
        error = ParityError if can_run else DependencyError
        raise error(f"not measured: {failed[0].name}: {failed[0].failed}")
    if not_compared:
        row = not_compared[0]
        raise ParityError(f"the masks of {row.name} were not compared: {row.unjudged}")
