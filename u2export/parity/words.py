"""A report's verdict in words, for every form it is written in."""

from __future__ import annotations

import re

from u2export.parity.report import CandidateResult, Report

# What Markdown would read as more than text; an underscore between letters it leaves alone.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$&#]|(?<!\w)_|_(?!\w)")
_NAMED = 3  # candidates that the verdict's sentence names


def why(report: Report) -> str:
    """The reason of the verdict, in one sentence without a full stop."""
    if report.passed:
        return _praise(report)
    faults = [f"{one.party.name}: {fault(one)}" for one in failed(report)]
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


def failed(report: Report) -> list[CandidateResult]:
    """The candidates that keep the report from passing."""
    found = [one for one in report.candidates if not one.passed]
    return [one for one in found if not (one.missing and report.allow_missing)]


def printable(text: str) -> str:
    """The text without what UTF-8 cannot write: a file name may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def escaped(text: str) -> str:
    """One line that Markdown shows as it is, also within a table."""
    return _MARKUP.sub(lambda found: "\\" + found[0], " ".join(printable(text).split()))


def _praise(report: Report) -> str:
    cases = [case for one in report.candidates for case in one.cases]
    skipped = sum(not case.judged for case in cases)
    names = [one.party.name for one in report.candidates if not one.missing]
    told = f"{_listed(names)} stayed within budget: {_count(len(cases) - skipped)} passed"
    told += f", {skipped} skipped" if skipped else ""
    absent = [one.party.name for one in report.missing]
    return f"{told}; missing, which was allowed: {_listed(absent)}" if absent else told


def _first(one: CandidateResult) -> str:
    judged, case = sum(case.judged for case in one.cases), one.failed[0]
    where = f" at stage '{case.stage}'" if case.stage else ""
    return f"{len(one.failed)} of {_count(judged)} failed, the first is '{case.name}'{where}"


def _count(cases: int) -> str:
    return f"{cases} case" if cases == 1 else f"{cases} cases"


def _listed(phrases: list[str], between: str = ", ") -> str:
    more = len(phrases) - _NAMED
    return between.join(phrases[:_NAMED] + ([f"and {more} more"] if more > 0 else []))
