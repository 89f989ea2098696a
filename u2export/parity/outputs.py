"""Everything a parity check writes, and its exit status."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from u2export.core.artifact import Artifact
from u2export.errors import ArtifactError, DependencyError, InputError, ParityError, pip_command
from u2export.parity.candidates import ShownCase
from u2export.parity.certificate import write_certificate
from u2export.parity.report import ParityReport
from u2export.parity.request import ParityRequest, open_candidate
from u2export.reports.mask_pair import MaskPair
from u2export.system.files import write_text


def certify_passed(request: ParityRequest, report: ParityReport) -> list[str]:
    """Write certificates into the manifests of the artifacts that passed.

    Returns:
        A sentence for each certificate that could not be written.
    """
    errors = []
    for path, result in zip(request.candidates, report.candidates, strict=False):
        artifact = open_candidate(path, request) if result.passed else None
        if not isinstance(artifact, Artifact) or not artifact.files:
            continue
        try:
            write_certificate(artifact, result, report)
        except InputError as error:
            errors.append(f"the certificate was not written: {error}")
    return errors


def write_reports(
    report: ParityReport,
    shown_cases: list[ShownCase],
    *,
    junit_file: Path | None = None,
    html_file: Path | None = None,
) -> None:
    """Write the report in every format for people and machines that has a path, but JSON.

    Args:
        report: the report.
        shown_cases: cases worth showing, for the page.
        junit_file: path of the JUnit XML file.
        html_file: path of the HTML page.

    Raises:
        InputError: a path cannot be written.
        DependencyError: a package that a format needs is not installed.
    """
    try:
        if junit_file:
            from u2export.parity import junit

            junit.write_junit(report, junit_file)
        if html_file:
            from u2export.parity import html

            write_text(html_file, html.parity_page(report, _mask_pairs(shown_cases)))
    except ModuleNotFoundError as error:
        raise DependencyError(f"this form needs {error.name}: {pip_command('parity')}") from error


def _mask_pairs(shown_cases: list[ShownCase]) -> list[MaskPair]:
    return [
        MaskPair(
            shown_case.candidate,
            shown_case.case,
            shown_case.picture,
            shown_case.reference_trace.stretched,
            shown_case.candidate_trace.stretched,
        )
        for shown_case in shown_cases
    ]


def write_github(report: ParityReport, shown_cases: list[ShownCase]) -> None:
    """Print annotations, and append to the summary of the running step, if there is one.

    Raises:
        InputError: the summary cannot be written.
    """
    from u2export.parity import github

    for line in github.workflow_commands(report):
        print(line)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        pairs = _mask_pairs(_failures_first(report, shown_cases))
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(github.step_summary(report, pairs))
        except OSError as error:
            raise InputError(f"{summary} cannot be written: {error.strerror}") from error


def _failures_first(report: ParityReport, shown_cases: list[ShownCase]) -> list[ShownCase]:
    """Sort failed cases before passed ones, and each candidate's worst before its next ones."""
    failed = {
        (result.party.name, case.name) for result in report.candidates for case in result.failed
    }
    seen: Counter[str] = Counter()
    ranked = []
    for shown_case in shown_cases:
        seen[shown_case.candidate] += 1
        passed = (shown_case.candidate, shown_case.case) not in failed
        ranked.append(((passed, seen[shown_case.candidate]), shown_case))
    return [shown_case for _, shown_case in sorted(ranked, key=lambda pair: pair[0])]


def raise_if_failed(report: ParityReport) -> None:
    """Refuse a report that did not pass.

    Raises:
        ArtifactError: a candidate was refused, and no other failed.
        DependencyError: a candidate could not be checked here, and nothing else is wrong.
        ParityError: a candidate failed, or nothing was checked.
    """
    if report.passed:
        return
    checked = [result for result in report.candidates if not result.missing]
    failed = [result.party.name for result in checked if not result.passed and not result.refused]
    refused = [result for result in checked if result.refused]
    if refused and not failed:
        raise ArtifactError(f"{refused[0].party.name} was refused: {refused[0].refused}")
    if failed:
        raise ParityError(f"not the same function as {report.reference.name}: {', '.join(failed)}")
    if report.missing and not report.allow_missing:
        raise DependencyError(f"not judged: {report.missing[0].missing}")
    raise ParityError("nothing was judged, which proves nothing")
