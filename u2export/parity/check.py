"""The parity check: is each candidate the same function as the reference, from file to mask?"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from u2export.compare.budgets import BUDGETS, budget_excess
from u2export.compare.metrics import MaskComparison, summarize_differences
from u2export.compare.probe_images import (
    QUICK_SEED_COUNT,
    QUICK_UNFORESEEN_COUNT,
    SYNTHETIC_SEEDS,
    UNFORESEEN_COUNT,
    Case,
    degenerate_cases,
    synthetic_cases,
    unforeseen_cases,
    user_cases,
)
from u2export.compare.stages import (
    FirstDifference,
    Pipeline,
    PipelineTrace,
    decode_case,
    find_first_difference,
    run_from_input,
)
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.enums import Precision
from u2export.core.models import PictureSpec
from u2export.errors import ArtifactError, InputError, U2ExportError
from u2export.images.decode import check_image
from u2export.parity.candidates import (
    Candidate,
    ShownCase,
    emulated_candidate,
    open_reference,
    prepare_candidate,
    reference_pipeline,
    runtime_info,
)
from u2export.parity.lookalikes import NAME as LOOKALIKES
from u2export.parity.lookalikes import Lookalikes, check_lookalikes, reference_lookalikes
from u2export.parity.properties import check_properties
from u2export.parity.report import CandidateResult, CaseResult, ParityReport
from u2export.parity.request import ParityRequest, open_candidate
from u2export.reports.text import printable
from u2export.system import hardware
from u2export.system.files import file_sha256

BLOCK_CASES = 128  # cases whose reference outputs are in memory at once
MAX_SHOWN = 6  # cases worth showing, per candidate
Track = Callable[[Sequence[Any], str], Generator[Any, None, None]]


def _untracked(items: Sequence[Any], what: str) -> Generator[Any, None, None]:
    yield from items


def check_parity(
    request: ParityRequest, track: Track = _untracked
) -> tuple[ParityReport, list[ShownCase]]:
    """Check every candidate on every case.

    Args:
        request: what to check, and how.
        track: yields the items it gets and shows the progress.

    Returns:
        The report, and the cases worth showing: those that failed, then the worst that passed.

    Raises:
        InputError: there is nothing to check, or a file or option cannot be used.
        ArtifactError: the reference was changed, or the only candidate was, or is refused.
        DependencyError: the reference cannot run here.
        ExportError: a parameter overflows an emulated precision.
        ParityError: the reference's runtime does something else than requested.
    """
    _check_request(request)
    opened = [open_candidate(path, request) for path in request.candidates]
    artifacts = [artifact for artifact in opened if isinstance(artifact, Artifact)]
    refusals = [error for error in opened if isinstance(error, ArtifactError)]
    if refusals and not artifacts:
        raise refusals[0]
    reference = open_reference(request, artifacts)
    candidates = [
        prepare_candidate(path, artifact, request)
        for path, artifact in zip(request.candidates, opened, strict=True)
    ]
    if len(candidates) == 1 and candidates[0].refused:
        raise ArtifactError(candidates[0].refused)
    candidates += [
        emulated_candidate(precision, request, reference) for precision in request.emulate
    ]
    runnable = [candidate for candidate in candidates if candidate.open_pipeline]
    _compare_cases(runnable, reference, request, track)
    known: dict[int, Lookalikes] = {}
    for candidate in track([c for c in runnable if c.artifact], "checking properties"):
        candidate.cases.extend(check_properties(candidate, request))
        _check_lookalikes(candidate, reference, request, known)
    report = _parity_report(request, reference, artifacts, candidates)
    return report, [case for candidate in candidates for case in candidate.shown_cases]


def _check_request(request: ParityRequest) -> None:
    """Refuse a request that cannot be checked, before minutes of work."""
    if not request.candidates and not request.emulate:
        raise InputError("there is nothing to judge: name a candidate, or --emulate a precision")
    names = [path.name for path in request.candidates]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate:
        raise InputError(f"two candidates are called {duplicate}: rename one, reports go by names")
    for path in request.pictures:
        check_image(path)


def _compare_cases(
    candidates: list[Candidate], reference: Artifact, request: ParityRequest, track: Track
) -> None:
    """Compare every candidate on every case, a block of cases at a time."""
    cases = [
        *synthetic_cases(len(SYNTHETIC_SEEDS) if request.thorough else QUICK_SEED_COUNT),
        *unforeseen_cases(
            _judged_digest(candidates, reference),
            UNFORESEEN_COUNT if request.thorough else QUICK_UNFORESEEN_COUNT,
        ),
        *user_cases(request.pictures),
        *degenerate_cases(large=request.thorough),
    ]
    sizes = {candidate.spec.size for candidate in candidates}
    steps = len(cases) * (len(sizes) + len(candidates))
    with closing(track(range(steps + 1), "comparing")) as ticks:
        for start in range(0, len(cases), BLOCK_CASES):
            block = cases[start : start + BLOCK_CASES]
            _compare_block(block, reference, candidates, request, partial(next, ticks))
        next(ticks)


def _check_lookalikes(
    candidate: Candidate, reference: Artifact, request: ParityRequest, known: dict[int, Lookalikes]
) -> None:
    """Check that a candidate that is not just like its reference is not like a mistake either.

    Args:
        candidate: gets the result.
        reference: computes what is not known yet.
        request: how to run it.
        known: what the reference gives, by the input's size; gets what is computed.
    """
    comparison, size = _summarize(candidate.cases), candidate.spec.size
    if comparison is None or comparison.raw_mean <= BUDGETS[Precision.FP32].raw_mean:
        return  # as near as can be
    assert candidate.open_pipeline
    try:
        if size not in known:
            with reference_pipeline(reference, size, request) as pipeline:
                known[size] = reference_lookalikes(pipeline)
        with candidate.open_pipeline() as pipeline:
            candidate.cases.append(check_lookalikes(pipeline, known[size]))
    except U2ExportError as error:
        reasons = (str(error),)
        candidate.cases.append(
            CaseResult(name=LOOKALIKES, kind="property", passed=False, reasons=reasons)
        )


def _judged_digest(candidates: list[Candidate], reference: Artifact) -> str:
    """The sha256 of all judged files together, in hexadecimal."""
    artifacts = [candidate.artifact for candidate in candidates if candidate.artifact]
    paths = [path for artifact in artifacts for path in registry.model_files(artifact)]
    digests = sorted(file_sha256(path) for path in paths) or [reference.facts.weights.sha256]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _compare_block(
    cases: list[Case],
    reference: Artifact,
    candidates: list[Candidate],
    request: ParityRequest,
    tick: Callable[[], object],
) -> None:
    """Compare some cases: the reference runs on all of them, then each candidate does.

    One runtime at a time is in memory, and no more pictures than one.
    """
    outputs: dict[tuple[int, int], Array | U2ExportError] = {}
    for size in sorted({candidate.spec.size for candidate in candidates}):
        with reference_pipeline(reference, size, request) as pipeline:
            for index, case in enumerate(cases):
                tick()
                outputs[index, size] = _reference_output(pipeline, case)
    for candidate in candidates:
        assert candidate.open_pipeline
        size = candidate.spec.size
        spec = dataclasses.replace(reference.facts.picture, size=size)
        with candidate.open_pipeline() as pipeline:
            for index, case in enumerate(cases):
                tick()
                _compare_case(case, outputs[index, size], spec, pipeline, candidate)


def _reference_output(pipeline: Pipeline, case: Case) -> Array | U2ExportError:
    """The reference's saliency for a case, (size,size) float32; or the error it fails with."""
    try:
        decoded = decode_case(case.read(), pipeline)
        return pipeline.network(pipeline.preprocess(decoded.picture, pipeline.spec))
    except U2ExportError as error:
        return error


def _compare_case(
    case: Case,
    reference_output: Array | U2ExportError,
    reference_spec: PictureSpec,
    pipeline: Pipeline,
    candidate: Candidate,
) -> None:
    """Compare a candidate with the reference on one case, and record the result.

    Args:
        case: the picture.
        reference_output: what `_reference_output` gave.
        reference_spec: the reference's preprocessing, at the candidate's size.
        pipeline: the candidate's.
        candidate: gets the result.
    """
    content = case.read()
    sha256 = hashlib.sha256(content).hexdigest()
    result = CaseResult(name=case.name, kind=case.kind, sha256=sha256, passed=False)
    try:
        traces = _trace_both(content, reference_output, reference_spec, pipeline)
        first = find_first_difference(*traces, candidate.budget)
    except U2ExportError as error:
        candidate.cases.append(result.model_copy(update={"reasons": (str(error),)}))
        return
    result = result.model_copy(update=_difference_fields(first))
    candidate.cases.append(result)
    if not result.passed or case.kind != "degenerate":
        _add_shown(candidate, ShownCase(candidate.info.name, case.name, content, *traces))


def _difference_fields(first: FirstDifference) -> dict[str, Any]:
    """The fields of a `CaseResult` that a comparison gives."""
    return {
        "passed": first.stage is None,
        "stage": first.stage.value if first.stage else "",
        "reasons": first.reasons,
        "difference": first.difference,
        "contrast": first.contrast,
    }


def _trace_both(
    content: bytes,
    reference_output: Array | U2ExportError,
    reference_spec: PictureSpec,
    pipeline: Pipeline,
) -> tuple[PipelineTrace, PipelineTrace]:
    """Run the reference's and the candidate's pipeline on one picture file."""
    if isinstance(reference_output, U2ExportError):
        raise reference_output
    reference = Pipeline("the reference", lambda x: reference_output, reference_spec)
    decoded = decode_case(content, pipeline)
    pixels = decoded.pixels
    reference_input = reference.preprocess(decoded.picture, reference_spec)
    candidate_input = pipeline.preprocess(decoded.picture, pipeline.spec)
    del decoded  # a large picture need not be in memory twice
    return (
        run_from_input(pixels, reference_input, reference),
        run_from_input(pixels, candidate_input, pipeline),
    )


def _add_shown(candidate: Candidate, new_case: ShownCase) -> None:
    """Add a case to those worth showing, and drop the least interesting one."""
    # of pictures with the same name, the first one counts
    results = {case.name: case for case in reversed(candidate.cases)}

    def rank(shown_case: ShownCase) -> tuple[bool, float]:
        case = results[shown_case.case]
        return (case.passed, -(case.difference.raw_mean if case.difference else 1.0))

    candidate.shown_cases.append(new_case)
    candidate.shown_cases.sort(key=rank)
    del candidate.shown_cases[MAX_SHOWN:]


def _parity_report(
    request: ParityRequest,
    reference: Artifact,
    artifacts: list[Artifact],
    candidates: list[Candidate],
) -> ParityReport:
    return ParityReport(
        created=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        command=printable(request.command),
        machine=hardware.describe_machine(),
        versions=registry.package_versions(
            artifact.backend for artifact in (reference, *artifacts)
        ),
        reference=runtime_info(reference),
        candidates=tuple(
            _candidate_result(candidate, reference.facts.picture) for candidate in candidates
        ),
        allow_missing=request.allow_missing,
        budgets=printable(str(request.budget_file or "")),
    )


def _candidate_result(candidate: Candidate, reference_spec: PictureSpec) -> CandidateResult:
    comparison = _summarize(candidate.cases)
    reasons: list[str] = []
    if comparison:
        excess = budget_excess(comparison, candidate.budget)
        reasons += [excess] if excess else []
        if not comparison.subjects:
            reasons.append("no picture has a subject, which proves nothing")
    return CandidateResult(
        party=candidate.info,
        budget=candidate.budget,
        cases=tuple(candidate.cases),
        judgement=comparison,
        reasons=tuple(reasons),
        missing=candidate.missing,
        refused=candidate.refused,
        notes=(*_unlike_preprocessing(candidate, reference_spec), *candidate.notes()),
    )


def _unlike_preprocessing(candidate: Candidate, reference_spec: PictureSpec) -> Iterator[str]:
    """Say what a candidate does to pictures that its reference does not."""
    for field in dataclasses.fields(PictureSpec) if candidate.artifact else ():
        said, expected = getattr(candidate.spec, field.name), getattr(reference_spec, field.name)
        if said != expected:
            yield f"its {field.name} is {said}, the reference's own is {expected}"


def _summarize(cases: list[CaseResult]) -> MaskComparison | None:
    """The figures over all compared pictures; None where none was compared."""
    differences = [case.difference for case in cases if case.difference is not None]
    contrasts = [case.contrast or 0.0 for case in cases if case.difference is not None]
    return summarize_differences(differences, contrasts) if differences else None
