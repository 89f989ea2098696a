"""A parity report for people at a terminal."""

from __future__ import annotations

from rich.table import Table

from u2export.parity.explanations import at_stage
from u2export.parity.report import CandidateResult, CaseResult, ParityReport
from u2export.reports.table import render_tables

_MAX_FAILURES = 12  # failed cases listed per candidate


def format_report(report: ParityReport) -> str:
    """Write one table row per candidate, the cases that failed, and the verdict."""
    looser = [report.looser] if report.looser else []
    lines = [*looser, f"against {report.reference.name}:", _table(report)]
    for result in report.candidates:
        lines += _remarks(result)
    if report.budgets:
        lines += [f"budgets of {report.budgets}:", *_budgets(report)]
    lines.append("passed" if report.passed else "FAILED")
    return "\n".join(lines)


def _table(report: ParityReport) -> str:
    table = Table("candidate", "verdict", "cases", "mask MAE", "IoU", "worst IoU", "raw max", "ran")
    for result in report.candidates:
        table.add_row(*_row(result))
    return render_tables(table)


def _row(result: CandidateResult) -> list[str]:
    verdict = "FAILED" if result.state == "failed" else result.state
    cases = f"{len(result.checked) - len(result.failed)} of {len(result.checked)}"
    ran = f"{result.party.how}; {result.party.ran}" if result.party.ran else ""
    return [result.party.name, verdict, cases, *_figures(result), ran]


def _figures(result: CandidateResult) -> list[str]:
    comparison = result.judgement
    if comparison is None:
        return ["", "", "", ""]
    return [
        _figure(comparison.mask_mae, ".2g"),
        _figure(comparison.mask_iou, ".4f"),
        _figure(comparison.worst_iou, ".4f"),
        _figure(comparison.raw_max, ".2g"),
    ]


def _figure(value: float | None, number_format: str) -> str:
    return "" if value is None else format(value, number_format)


def _remarks(result: CandidateResult) -> list[str]:
    name = result.party.name
    if result.missing:
        return [f"{name} was not judged: {result.missing}"]
    if result.refused:
        return [f"{name} was refused: {result.refused}"]
    lines = [f"{name}: {reason}" for reason in result.reasons]
    lines += [_failure(name, case) for case in result.failed[:_MAX_FAILURES]]
    if len(result.failed) > _MAX_FAILURES:
        lines.append(f"{name}: and {len(result.failed) - _MAX_FAILURES} more cases")
    if result.worst:
        difference = result.worst.difference
        mean = f", raw mean {difference.raw_mean:.2g}" if difference else ""
        lines.append(f"{name} differs most on '{result.worst.name}'{mean}")
    return lines + [f"{name}: {note}" for note in result.notes]


def _failure(candidate: str, case: CaseResult) -> str:
    return f"{candidate} failed '{case.name}'{at_stage(case)}: {'; '.join(case.reasons)}"


def _budgets(report: ParityReport) -> list[str]:
    """How far each precision may differ, one line each."""
    budgets = {
        result.party.precision: result.budget for result in report.candidates if result.judgement
    }
    return [
        f"  {precision}: "
        + ", ".join(f"{name} {bound:g}" for name, bound in budget if bound is not None)
        for precision, budget in budgets.items()
    ]
