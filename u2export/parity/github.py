"""A parity report for GitHub Actions: annotations and a summary; and the verdict in words."""

# `from __future__ import annotations` would bear the name of a function below.
import re
from collections.abc import Iterator

from u2export.parity.report import CandidateResult, CaseResult, Report

# A summary may have 1 MiB; a row has some 200 bytes, and twice that where its reasons are long.
MOST_ROWS = 1000
_NAMED = 3  # candidates that the verdict's sentence names
# What Markdown would read as more than text; an underscore between letters it leaves alone.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)")


def why(report: Report) -> str:
    """The reason of the verdict, in one sentence without a full stop."""
    if report.passed:
        return _praise(report)
    faults = [f"{one.party.name}: {fault(one)}" for one in _failed(report)]
    if faults:
        return _listed(faults, "; ")
    absent = "every candidate is missing" if report.candidates else "there is no candidate"
    return f"nothing was judged, which proves nothing: {absent}"


def fault(one: CandidateResult) -> str:
    """What keeps a candidate from passing, as a phrase; empty where nothing does."""
    if one.passed:
        return ""
    if one.missing:
        return f"could not be judged: {one.missing.strip().rstrip('.')}"
    found = [_first(one)] if one.failed else []
    found += one.reasons
    return "; ".join(found) or "no picture with a subject was compared, which proves nothing"


def printable(text: str) -> str:
    """The text without what UTF-8 cannot write: a file name may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def annotations(report: Report) -> list[str]:
    """Workflow commands: one notice, or an error for each candidate and each case that failed.

    GitHub shows the first ten errors of a step, so those of the candidates come first.

    Source:
        https://docs.github.com/actions/reference/workflow-commands-for-github-actions; how values
        are escaped: `escapeData` and `escapeProperty` of github.com/actions/toolkit.
    """
    if report.passed:
        return [_command("notice", "parity check passed", why(report))]
    failed = _failed(report)
    found = [_command("error", f"{one.party.name} failed", fault(one)) for one in failed]
    found += [line for one in failed for line in _case_errors(one)]
    return found or [_command("error", "parity check failed", why(report))]


def summary(report: Report) -> str:
    """Markdown for the file that $GITHUB_STEP_SUMMARY names."""
    verdict = "✅ Parity check passed" if report.passed else "❌ Parity check FAILED"
    lines = [f"## {verdict}", "", f"Why: {_text(why(report))}.", "", *_candidates(report), ""]
    return "\n".join([*lines, *_cases(report), ""])


def _praise(report: Report) -> str:
    cases = [case for one in report.candidates for case in one.cases]
    skipped = sum(not case.judged for case in cases)
    names = [one.party.name for one in report.candidates if not one.missing]
    told = f"{_listed(names)} stayed within budget: {_count(len(cases) - skipped)} passed"
    told += f", {skipped} skipped" if skipped else ""
    absent = [one.party.name for one in report.missing]
    return f"{told}; missing, which was allowed: {_listed(absent)}" if absent else told


def _failed(report: Report) -> list[CandidateResult]:
    """The candidates that keep the report from passing."""
    found = [one for one in report.candidates if not one.passed]
    return [one for one in found if not (one.missing and report.allow_missing)]


def _first(one: CandidateResult) -> str:
    judged, case = sum(case.judged for case in one.cases), one.failed[0]
    where = f" at stage '{case.stage}'" if case.stage else ""
    return f"{len(one.failed)} of {_count(judged)} failed, the first is '{case.name}'{where}"


def _count(cases: int) -> str:
    return f"{cases} case" if cases == 1 else f"{cases} cases"


def _listed(phrases: list[str], between: str = ", ") -> str:
    more = len(phrases) - _NAMED
    return between.join(phrases[:_NAMED] + ([f"and {more} more"] if more > 0 else []))


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
        name, *others = [_text(cell) for cell in cells]
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
        yield f"| {_verdict(case)} | {' | '.join(_text(cell) for cell in cells)} |"
    if len(rows) > MOST_ROWS:
        yield f"\nand {len(rows) - MOST_ROWS} more"
    yield "\n</details>"


def _verdict(case: CaseResult) -> str:
    if not case.judged:
        return "skipped"
    return "passed" if case.passed else "**FAILED**"


def _text(text: str) -> str:
    """One line that Markdown shows as it is, also within a table."""
    return _MARKUP.sub(lambda found: "\\" + found[0], " ".join(printable(text).split()))
