"""A parity report for GitHub Actions: annotations and a summary; and the verdict in words."""

# `from __future__ import annotations` would bear the name of a function below.
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from u2export.backend import Array
from u2export.parity.report import CandidateResult, CaseResult, Report
from u2export.parity.shown import Shown
from u2export.parity.words import escaped, failed, fault, printable, why

# A summary may have 1 MiB; a row has some 200 bytes, and twice that where its reasons are long.
MOST_ROWS = 1000
MOST_DRAWN = 4  # cases whose masks are drawn
_COLUMNS = 36  # characters a mask is wide
_SHADES = " ░▒▓█"


def annotations(report: Report) -> list[str]:
    """Workflow commands: one notice, or an error for each candidate and each case that failed.

    GitHub shows the first ten errors of a step, so those of the candidates come first.

    Source:
        https://docs.github.com/actions/reference/workflow-commands-for-github-actions; how values
        are escaped: `escapeData` and `escapeProperty` of github.com/actions/toolkit.
    """
    if report.passed:
        return [_command("notice", "parity check passed", why(report))]
    wrong = failed(report)
    found = [_command("error", f"{one.party.name} failed", fault(one)) for one in wrong]
    found += [line for one in wrong for line in _case_errors(one)]
    return found or [_command("error", "parity check failed", why(report))]


def summary(report: Report, shown: Sequence[Shown] = ()) -> str:
    """Markdown for the file that $GITHUB_STEP_SUMMARY names.

    GitHub takes pictures out of a summary unless they lie on a server, so the masks are drawn with
    characters.

    Args:
        report: what was found.
        shown: cases to be looked at, in this order; the first few are drawn.
    """
    verdict = "✅ Parity check passed" if report.passed else "❌ Parity check FAILED"
    lines = [f"## {verdict}", "", f"Why: {escaped(why(report))}.", "", *_candidates(report), ""]
    for one in shown[:MOST_DRAWN]:
        lines += [*_drawn(one), ""]
    return "\n".join([*lines, *_cases(report), ""])


def _drawn(one: Shown) -> Iterator[str]:
    """The masks of a case side by side, and where they differ."""
    yield f"{escaped(one.candidate)} on {escaped(one.case)}:\n"
    yield "```text"
    if one.reference.shape != one.found.shape:
        yield "the masks are of different sizes"
    else:
        apart = np.sqrt(np.abs(one.reference - one.found))
        masks = (_shades(one.reference, np.mean), _shades(one.found, np.mean))
        heads = ("reference", "candidate", "difference (square root, largest nearby)")
        yield "  ".join(head.ljust(_COLUMNS) for head in heads).rstrip()
        for row in zip(*masks, _shades(apart, np.max), strict=True):
            yield "  ".join(row).rstrip()
    yield "```"


def _shades(values: Array, pooled: Callable[..., Array]) -> list[str]:
    """Draw a square map in [0,1] with characters, which are twice as high as wide."""
    side = len(values)
    rows = np.linspace(0, side, _COLUMNS // 2 + 1).astype(int)
    columns = np.linspace(0, side, _COLUMNS + 1).astype(int)
    cells = [
        [float(pooled(values[top : max(below, top + 1), left : max(right, left + 1)]))
         for left, right in pairwise(columns)]
        for top, below in pairwise(rows)
    ]  # fmt: skip
    most = len(_SHADES) - 1
    return ["".join(_SHADES[min(int(cell * most + 0.5), most)] for cell in row) for row in cells]


def _case_errors(one: CandidateResult) -> Iterator[str]:
    for case in one.failed:
        where = f" at stage '{case.stage}'" if case.stage else ""
        title = f"{one.party.name} failed on {case.name}{where}"
        yield _command("error", title, "; ".join(case.reasons) or "over its bound")


def _command(name: str, title: str, message: str) -> str:
    title = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={title}::{_data(message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _candidates(report: Report) -> Iterator[str]:
    yield "| candidate | verdict | precision | how | cases | worst picture | mask MAE | mask IoU |"
    yield "|-|-|-|-|-|-|-|-|"
    for one in report.candidates:
        verdict = "missing" if one.missing else ("passed" if one.passed else "**FAILED**")
        judged = sum(case.judged for case in one.cases)
        cases = f"{judged - len(one.failed)} of {judged}"
        worst = one.worst.name if one.worst else ""
        how = "not run" if one.missing else one.party.how
        cells = [one.party.name, one.party.precision, how, cases, worst]
        name, *others = [escaped(cell) for cell in cells]
        yield f"| {' | '.join([name, verdict, *others, *_figures(one)])} |"


def _figures(one: CandidateResult) -> list[str]:
    """Mask MAE and mask IoU over all pictures, each with its bound."""
    found, budget = one.judgement, one.budget
    if found is None or found.mask_mae is None or found.mask_iou is None:
        return ["", ""]
    mae = f"{found.mask_mae:.2g} (at most {budget.mask_mae:g})"
    return [mae, f"{found.mask_iou:.4f} (at least {budget.mask_iou:g})"]


def _cases(report: Report) -> Iterator[str]:
    rows = [(case, one) for one in report.candidates for case in one.cases]
    rows.sort(key=lambda row: (not row[0].judged, row[0].passed))
    yield f"<details><summary>All cases ({len(rows)})</summary>\n"
    yield "| verdict | candidate | case | first stage that differs | why |\n|-|-|-|-|-|"
    for case, one in rows[:MOST_ROWS]:
        cells = [one.party.name, case.name, case.stage, case.skipped or "; ".join(case.reasons)]
        yield f"| {_verdict(case)} | {' | '.join(escaped(cell) for cell in cells)} |"
    if len(rows) > MOST_ROWS:
        yield f"\nand {len(rows) - MOST_ROWS} more"
    yield "\n</details>"


def _verdict(case: CaseResult) -> str:
    if not case.judged:
        return "skipped"
    return "passed" if case.passed else "**FAILED**"
