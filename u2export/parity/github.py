"""A parity report for GitHub: annotations and a summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from u2export.core.arrays import Array
from u2export.parity.explanations import (
    at_stage,
    failed_candidates,
    failure_reason,
    verdict_reason,
)
from u2export.parity.report import CandidateResult, ParityReport
from u2export.reports.mask_pair import MaskPair
from u2export.reports.text import escape_markdown, printable

# A summary may have 1 MiB. A row has some 200 bytes, and twice that where its reasons are long.
MAX_ROWS = 1000
MAX_MASKS = 4  # cases whose masks are drawn
_COLUMNS = 36  # characters a mask is wide
_SHADES = " ░▒▓█"


def workflow_commands(report: ParityReport) -> list[str]:
    """Workflow commands: one notice, or an error for each candidate and each case that failed.

    GitHub shows the first ten errors of a step, so those of the candidates come first.

    Source:
        https://docs.github.com/actions/reference/workflow-commands-for-github-actions; how values
        are escaped: `escapeData` and `escapeProperty` of github.com/actions/toolkit.
    """
    if report.passed:
        return [_command("notice", "parity check passed", verdict_reason(report))]
    failed = failed_candidates(report)
    commands = [
        _command("error", f"{result.party.name} failed", failure_reason(result))
        for result in failed
    ]
    commands += [line for result in failed for line in _case_errors(result)]
    return commands or [_command("error", "parity check failed", verdict_reason(report))]


def _case_errors(result: CandidateResult) -> Iterator[str]:
    for case in result.failed:
        title = f"{result.party.name} failed on {case.name}{at_stage(case)}"
        yield _command("error", title, "; ".join(case.reasons) or "over its bound")


def _command(name: str, title: str, message: str) -> str:
    title = _escape_data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={title}::{_escape_data(message)}"


def _escape_data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def step_summary(report: ParityReport, mask_pairs: Sequence[MaskPair] = ()) -> str:
    """Markdown for the file that $GITHUB_STEP_SUMMARY names.

    GitHub removes pictures from a summary unless a server has them. The masks are therefore drawn
    with characters.

    Args:
        report: the report.
        mask_pairs: cases worth showing, in this order; the first few are drawn.
    """
    verdict = "✅ Parity check passed" if report.passed else "❌ Parity check FAILED"
    lines = [
        f"## {verdict}",
        "",
        f"Why: {escape_markdown(verdict_reason(report))}.",
        "",
        *_candidate_table(report),
        "",
    ]
    for pair in mask_pairs[:MAX_MASKS]:
        lines += [*_draw_masks(pair), ""]
    return "\n".join([*lines, *_case_table(report), ""])


def _candidate_table(report: ParityReport) -> Iterator[str]:
    yield "| candidate | verdict | precision | how | cases | worst picture | mask MAE | mask IoU |"
    yield "|-|-|-|-|-|-|-|-|"
    for result in report.candidates:
        cases = f"{len(result.checked) - len(result.failed)} of {len(result.checked)}"
        worst = result.worst.name if result.worst else ""
        how = "not run" if result.missing else result.party.how
        cells = [result.party.name, result.party.precision, how, cases, worst]
        name, *others = [escape_markdown(cell) for cell in cells]
        yield f"| {' | '.join([name, _verdict(result.state), *others, *_figures(result)])} |"


def _figures(result: CandidateResult) -> list[str]:
    """Mask MAE and mask IoU over all pictures, each with its bound."""
    comparison, budget = result.judgement, result.budget
    if comparison is None or comparison.mask_mae is None or comparison.mask_iou is None:
        return ["", ""]
    mae = f"{comparison.mask_mae:.2g} (at most {budget.mask_mae:g})"
    return [mae, f"{comparison.mask_iou:.4f} (at least {budget.mask_iou:g})"]


def _draw_masks(pair: MaskPair) -> Iterator[str]:
    """Draw the two masks of a case side by side, and where they differ."""
    yield f"{escape_markdown(pair.candidate)} on {escape_markdown(pair.case)}:\n"
    yield "```text"
    if pair.reference_mask.shape != pair.candidate_mask.shape:
        yield "the masks are of different sizes"
    else:
        difference = np.sqrt(np.abs(pair.reference_mask - pair.candidate_mask))
        masks = (_shade(pair.reference_mask, np.mean), _shade(pair.candidate_mask, np.mean))
        headings = ("reference", "candidate", "difference (square root, largest nearby)")
        yield "  ".join(heading.ljust(_COLUMNS) for heading in headings).rstrip()
        for row in zip(*masks, _shade(difference, np.max), strict=True):
            yield "  ".join(row).rstrip()
    yield "```"


def _shade(values: Array, pool: Callable[..., Array]) -> list[str]:
    """Draw a square map in [0,1] with characters, which are twice as high as wide.

    Args:
        values: (S,S) float32 in [0,1].
        pool: reduces the pixels of one character to one value.

    Returns:
        The lines, 36 characters each.
    """
    size = len(values)
    rows = np.linspace(0, size, _COLUMNS // 2 + 1).astype(int)
    columns = np.linspace(0, size, _COLUMNS + 1).astype(int)
    cells = [
        [
            float(pool(values[top : max(bottom, top + 1), left : max(right, left + 1)]))
            for left, right in pairwise(columns)
        ]
        for top, bottom in pairwise(rows)
    ]
    last = len(_SHADES) - 1
    return ["".join(_SHADES[min(int(cell * last + 0.5), last)] for cell in row) for row in cells]


def _case_table(report: ParityReport) -> Iterator[str]:
    rows = [(case, result) for result in report.candidates for case in result.cases]
    rows.sort(key=lambda row: (not row[0].checked, row[0].passed))
    yield f"<details><summary>All cases ({len(rows)})</summary>\n"
    yield "| verdict | candidate | case | first stage that differs | why |\n|-|-|-|-|-|"
    for case, result in rows[:MAX_ROWS]:
        cells = [result.party.name, case.name, case.stage, case.skipped or "; ".join(case.reasons)]
        yield f"| {_verdict(case.state)} | {' | '.join(escape_markdown(cell) for cell in cells)} |"
    if len(rows) > MAX_ROWS:
        yield f"\nand {len(rows) - MAX_ROWS} more"
    yield "\n</details>"


def _verdict(state: str) -> str:
    return "**FAILED**" if state == "failed" else state
