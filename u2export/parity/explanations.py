"""The verdict of a report in words, the same in every output format."""

from __future__ import annotations

from u2export.parity.report import CandidateResult, CaseResult, ParityReport

_MAX_NAMES = 3  # candidates that the verdict's sentence names


def verdict_reason(report: ParityReport) -> str:
    """Explain the verdict in one sentence without a full stop; looser budgets come first."""
    return f"{report.looser}; {_verdict(report)}" if report.looser else _verdict(report)


def _verdict(report: ParityReport) -> str:
    if report.passed:
        return _passed_sentence(report)
    reasons = [
        f"{result.party.name}: {failure_reason(result)}" for result in failed_candidates(report)
    ]
    if reasons:
        return _join_names(reasons, "; ")
    absent = "every candidate is missing" if report.candidates else "there is no candidate"
    return f"nothing was judged, which proves nothing: {absent}"


def failure_reason(result: CandidateResult) -> str:
    """Explain why a candidate does not pass, as a phrase; empty where it passes."""
    if result.passed:
        return ""
    if result.missing:
        return f"could not be judged: {result.missing.strip().rstrip('.')}"
    if result.refused:
        return f"was refused: {result.refused.strip().rstrip('.')}"
    reasons = [_first_failure(result)] if result.failed else []
    reasons += result.reasons
    return "; ".join(reasons) or "no picture with a subject was compared, which proves nothing"


def failed_candidates(report: ParityReport) -> list[CandidateResult]:
    """The candidates that keep the report from passing."""
    failed = [result for result in report.candidates if not result.passed]
    return [result for result in failed if not (result.missing and report.allow_missing)]


def at_stage(case: CaseResult) -> str:
    """Name the stage at which a case fails, to follow its name; empty where no stage does."""
    return f" at stage '{case.stage}'" if case.stage else ""


def _passed_sentence(report: ParityReport) -> str:
    cases = [case for result in report.candidates for case in result.cases]
    skipped = sum(not case.checked for case in cases)
    names = [result.party.name for result in report.candidates if not result.missing]
    passed = _case_count(len(cases) - skipped)
    sentence = f"{_join_names(names)} stayed within budget: {passed} passed"
    if skipped:
        sentence += f", {skipped} skipped"
    if report.missing:
        missing = _join_names([result.party.name for result in report.missing])
        sentence += f"; missing, which was allowed: {missing}"
    return sentence


def _first_failure(result: CandidateResult) -> str:
    first = result.failed[0]
    failed = f"{len(result.failed)} of {_case_count(len(result.checked))} failed"
    return f"{failed}, the first is '{first.name}'{at_stage(first)}"


def _case_count(cases: int) -> str:
    return f"{cases} case" if cases == 1 else f"{cases} cases"


def _join_names(phrases: list[str], separator: str = ", ") -> str:
    more = len(phrases) - _MAX_NAMES
    return separator.join(phrases[:_MAX_NAMES] + ([f"and {more} more"] if more > 0 else []))
