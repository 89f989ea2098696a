"""A parity report for people at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from u2export.parity.report import CandidateResult, CaseResult, Report

_WIDTH = 118
_FAILED_SHOWN = 12


def table(report: Report) -> str:
    """The verdict, a row a candidate, and the cases that failed."""
    shown = Table("candidate", "verdict", "cases", "mask MAE", "IoU", "worst IoU", "raw max", "ran")
    for one in report.candidates:
        shown.add_row(*_row(one))
    console = Console(width=_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    lines = [f"against {report.reference.name}:", capture.get().rstrip("\n")]
    for one in report.candidates:
        lines += _remarks(one)
    if report.budgets:
        lines += [f"budgets of {report.budgets}:", *_budgets(report)]
    lines.append("passed" if report.passed else "FAILED")
    return "\n".join(lines)


def _budgets(report: Report) -> list[str]:
    """What each precision may differ by, a line each."""
    found = {one.party.precision: one.budget for one in report.candidates if not one.missing}
    return [
        f"  {precision}: " + ", ".join(f"{k} {v:g}" for k, v in budget if v is not None)
        for precision, budget in found.items()
    ]


def _row(one: CandidateResult) -> list[str]:
    verdict = "missing" if one.missing else ("passed" if one.passed else "FAILED")
    judged = [case for case in one.cases if case.judged]
    cases = f"{len(judged) - len(one.failed)} of {len(judged)}"
    found = one.judgement
    ran = f"{one.party.how}; {one.party.ran}" if one.party.ran else ""
    if found is None:
        return [one.party.name, verdict, cases, "", "", "", "", ran]
    figures = [_figure(found.mask_mae, "{:.2g}"), _figure(found.mask_iou, "{:.4f}")]
    figures += [_figure(found.worst_iou, "{:.4f}"), f"{found.raw_max:.2g}"]
    return [one.party.name, verdict, cases, *figures, ran]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _remarks(one: CandidateResult) -> list[str]:
    if one.missing:
        return [f"{one.party.name} was not judged: {one.missing}"]
    lines = [f"{one.party.name}: {reason}" for reason in one.reasons]
    lines += [_failure(one, case) for case in one.failed[:_FAILED_SHOWN]]
    if len(one.failed) > _FAILED_SHOWN:
        lines.append(f"{one.party.name}: and {len(one.failed) - _FAILED_SHOWN} more cases")
    if one.worst:
        difference = one.worst.difference
        mean = f", raw mean {difference.raw_mean:.2g}" if difference else ""
        lines.append(f"{one.party.name} differs most on '{one.worst.name}'{mean}")
    return lines + [f"{one.party.name}: {note}" for note in one.notes]


def _failure(one: CandidateResult, case: CaseResult) -> str:
    where = f" at stage '{case.stage}'" if case.stage else ""
    return f"{one.party.name} failed '{case.name}'{where}: {'; '.join(case.reasons)}"
