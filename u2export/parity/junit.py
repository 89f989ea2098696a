"""A parity report as JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from junitparser.junitparser import FinalResult

from u2export.parity.explanations import failure_reason, verdict_reason
from u2export.parity.report import CandidateResult, CaseResult, ParityReport
from u2export.system.files import write_text

METRICS = ("raw_max", "raw_mean", "mask_mae", "mask_iou", "boundary_f")
OVERALL = "all pictures"  # name of the test for the figures over all pictures
# XML 1.0 cannot hold these characters, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(report: ParityReport, path: Path) -> None:
    """Write one test suite per candidate, complete or not at all.

    A test is one metric of a picture, a case without figures, or the figures over all pictures. A
    report that did not pass always gives a file with a failure or an error.

    Raises:
        InputError: the file cannot be written.
    """
    root = JUnitXml("parity")
    for result in report.candidates:
        properties = _properties(result, report)
        _append(root, _suite(result.party.name, _candidate_tests(result, report), properties))
    root.update_statistics()  # type: ignore[no-untyped-call]
    if not report.passed and not root.failures and not root.errors:
        verdict = _test("verdict", "verdict", Error(_clean(verdict_reason(report))))
        _append(root, _suite("verdict", [verdict]))
        root.update_statistics()  # type: ignore[no-untyped-call]
    write_text(path, root.tostring().decode())  # type: ignore[no-untyped-call]


def _append(root: JUnitXml, suite: TestSuite) -> None:
    """Append a suite; `JUnitXml.add_testsuite` would merge candidates of one name."""
    root.append(suite)  # type: ignore[no-untyped-call]


def _suite(
    name: str, tests: Iterable[TestCase], properties: dict[str, str] | None = None
) -> TestSuite:
    suite = TestSuite(_clean(name))
    for key, value in (properties or {}).items():
        suite.add_property(_clean(key), _clean(value))
    suite.add_testcases(list(tests))
    return suite


def _properties(result: CandidateResult, report: ParityReport) -> dict[str, str]:
    runtime = result.party.model_dump(include={"backend", "precision", "runtime", "ran", "how"})
    hashes = {f"sha256 of {name}": digest for name, digest in result.party.files.items()}
    looser = {"budgets": report.looser} if report.looser else {}
    return {**looser, **runtime, **hashes, "created": report.created, "command": report.command}


def _candidate_tests(result: CandidateResult, report: ParityReport) -> Iterator[TestCase]:
    name = result.party.name
    if result.missing:
        outcome = Skipped if report.allow_missing else Error
        yield _test(name, name, outcome(_clean(failure_reason(result)), "missing"))
        return
    if result.refused:
        yield _test(name, name, Error(_clean(failure_reason(result)), "refused"))
        return
    for case in result.cases:
        yield from _case_tests(case, name)
    overall = result.model_copy(update={"cases": ()})  # without cases, only the totals can fail
    reasons = () if overall.passed else overall.reasons or (failure_reason(overall),)
    yield _test(OVERALL, name, _failure(reasons, OVERALL))


def _case_tests(case: CaseResult, candidate: str) -> Iterator[TestCase]:
    if not case.checked:
        yield _test(case.name, candidate, Skipped(_clean(case.skipped)))
        return
    if case.passed and case.difference is None:
        yield _test(case.name, candidate)
        return
    failed_metrics = 0
    for metric in METRICS if case.difference else ():
        reasons = () if case.passed else tuple(text for text in case.reasons if metric in text)
        failed_metrics += bool(reasons)
        test = _test(f"{case.name}: {metric}", candidate, _failure(reasons, case.stage))
        test.system_out = f"{metric} {getattr(case.difference, metric):.6g}"
        yield test
    if not case.passed and not failed_metrics:
        reasons = case.reasons or ("over its bound",)
        stage = case.stage or "comparison"
        yield _test(f"{case.name}: {stage}", candidate, _failure(reasons, stage))


def _test(name: str, candidate: str, result: FinalResult | None = None) -> TestCase:
    test = TestCase(_clean(name), _clean(candidate))
    if result is not None:
        test.result = result
    return test


def _failure(reasons: tuple[str, ...], stage: str) -> Failure | None:
    if not reasons:
        return None
    failure = Failure(_clean("; ".join(reasons)), _clean(stage or "parity"))
    failure.text = _clean("\n".join(reasons))
    return failure


def _clean(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text)
