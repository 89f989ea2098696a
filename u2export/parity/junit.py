"""A parity report as a JUnit file, which CI servers show as test results."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from junitparser.junitparser import FinalResult

from u2export.errors import InputError
from u2export.parity.report import CandidateResult, CaseResult, Report
from u2export.parity.words import fault, why

METRICS = ("raw_max", "raw_mean", "mask_mae", "mask_iou", "boundary_f")
OVERALL = "all pictures"  # the test of what is judged over all of them
# XML 1.0 has no way to write these, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(report: Report, path: Path) -> None:
    """Write a test suite for each candidate, whole or not at all.

    A test is a picture's metric, a case without figures, or what is judged over all pictures. A
    report that did not pass never gives a file without failure or error.

    Raises:
        InputError: the place cannot be written.
    """
    root = JUnitXml("parity")
    for one in report.candidates:
        _hang(root, _suite(one.party.name, _tests(one, report), _facts(one, report)))
    root.update_statistics()  # type: ignore[no-untyped-call]
    if not report.passed and not root.failures and not root.errors:
        _hang(root, _suite("verdict", [_test("verdict", "verdict", Error(_clean(why(report))))]))
        root.update_statistics()  # type: ignore[no-untyped-call]
    _replace(path, root.tostring())  # type: ignore[no-untyped-call]


def _hang(root: JUnitXml, suite: TestSuite) -> None:
    """Append: `JUnitXml.add_testsuite` would merge candidates of one name."""
    root.append(suite)  # type: ignore[no-untyped-call]


def _suite(name: str, tests: Iterable[TestCase], facts: dict[str, str] | None = None) -> TestSuite:
    suite = TestSuite(_clean(name))
    for fact, value in (facts or {}).items():
        suite.add_property(_clean(fact), _clean(value))
    suite.add_testcases(list(tests))
    return suite


def _facts(one: CandidateResult, report: Report) -> dict[str, str]:
    party = one.party.model_dump(include={"backend", "precision", "runtime", "ran", "how"})
    hashes = {f"sha256 of {name}": digest for name, digest in one.party.files.items()}
    return {**party, **hashes, "created": report.created, "command": report.command}


def _tests(one: CandidateResult, report: Report) -> Iterator[TestCase]:
    name = one.party.name
    if one.missing:
        absent = Skipped if report.allow_missing else Error
        yield _test(name, name, absent(_clean(fault(one)), "missing"))
        return
    for case in one.cases:
        yield from _tests_of_case(case, name)
    whole = one.model_copy(update={"cases": ()})  # what is left to fail without a single case
    reasons = () if whole.passed else whole.reasons or (fault(whole),)
    yield _test(OVERALL, name, _failure(reasons, OVERALL))


def _tests_of_case(case: CaseResult, candidate: str) -> Iterator[TestCase]:
    if not case.judged:
        yield _test(case.name, candidate, Skipped(_clean(case.skipped)))
        return
    if case.passed and case.difference is None:
        yield _test(case.name, candidate)
        return
    named = False
    for metric in METRICS if case.difference else ():
        reasons = () if case.passed else tuple(text for text in case.reasons if metric in text)
        named = named or bool(reasons)
        test = _test(f"{case.name}: {metric}", candidate, _failure(reasons, case.stage))
        test.system_out = f"{metric} {getattr(case.difference, metric):.6g}"
        yield test
    if not case.passed and not named:
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
    return _NOT_XML.sub("\ufffd", text)


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
