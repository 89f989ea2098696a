"""`u2export auto`: export all candidates, check and measure them, and keep the best."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from u2export.benchmark.limits import Limits
from u2export.benchmark.measure import measure_artifacts
from u2export.benchmark.plan import DEFAULT_SECONDS, BenchmarkPlan
from u2export.benchmark.recommend import Recommendation, recommend
from u2export.benchmark.recommend_report import format_recommendation
from u2export.benchmark.report import BenchmarkReport
from u2export.benchmark.text import format_benchmark
from u2export.core import registry
from u2export.core.artifact import Artifact
from u2export.core.backend import Backend
from u2export.core.enums import Precision
from u2export.core.models import MODELS, ModelSpec
from u2export.core.requests import ExportSpec, Quantization, RunRequest
from u2export.errors import DependencyError, InputError, OutputError, ParityError, U2ExportError
from u2export.export.build import build_artifact
from u2export.export.publish import publish, workspace
from u2export.network import weights
from u2export.parity.check import check_parity
from u2export.parity.explanations import failure_reason
from u2export.parity.outputs import certify_passed
from u2export.parity.request import TORCH_REFERENCE, ParityRequest
from u2export.reports.mask_pair import MaskPair
from u2export.system.files import resolved, scratch_folder, write_error
from u2export.system.progress import PhaseCallback, say

PRECISIONS = (Precision.FP32, Precision.FP16)  # int8 too, if there are calibration pictures


@dataclass(frozen=True)
class AutoRequest:
    """What to choose from, and what the choice must fulfil.

    Attributes:
        model: entry of the model table.
        weights: value of `--weights`, or None.
        fallback: use the demo weights if the model's weights are not available.
        limits: limits that the winner must keep.
        sizes: sides of the input to try, pixels; empty is the model's own size.
        pictures: the user's picture files for checks and masks.
        calibration: other picture files that calibrate int8. Without them int8 is left out.
        out: folder for the winner.
        run: how to run the candidates.
        seconds: longest duration of measuring in rounds.
        command: the command line.
    """

    model: ModelSpec
    weights: str | None = None
    fallback: bool = False
    limits: Limits = field(default_factory=Limits)
    sizes: tuple[int, ...] = ()
    pictures: tuple[Path, ...] = ()
    calibration: tuple[Path, ...] = ()
    out: Path = Path("exported")
    run: RunRequest = field(default_factory=RunRequest)
    seconds: float = DEFAULT_SECONDS
    command: str = ""


@dataclass(frozen=True)
class AutoResult:
    """The choice and its reasons.

    Attributes:
        path: the winner in its folder; None if nothing keeps the limits.
        report: the benchmark.
        mask_pairs: the worst picture of each row.
        recommendation: winner, Pareto front, and why the others lost.
        rejected: candidates that are not the same function as the weights, with the reason.
    """

    path: Path | None
    report: BenchmarkReport
    mask_pairs: list[MaskPair]
    recommendation: Recommendation
    rejected: tuple[str, ...]


def choose_best(request: AutoRequest, phase: PhaseCallback = lambda name: None) -> AutoResult:
    """Export every format, precision and size that runs here, and publish the best.

    Args:
        request: candidates, limits and folder.
        phase: called with the name of each phase.

    Raises:
        InputError: an option cannot be used, or the folder cannot be written.
        DependencyError: the weights are not available.
        ParityError: no candidate is the same function as the weights.
        U2ExportError: no candidate could be exported; what kept the first one from it.
    """
    _check_pictures(request)
    _create_folder(request.out)  # fails before minutes of work, and not after them
    phase("finding the weights")
    source = _find_source(request)
    with scratch_folder() as name:
        folder = Path(name)
        made = list(_export_candidates(request, source, folder, phase))
        candidates = [one for one in made if isinstance(one, Artifact)]
        if not candidates:
            raise _why_none([one for one in made if isinstance(one, U2ExportError)])
        passed, rejected = _check_candidates(candidates, request, phase)
        report, mask_pairs = measure_artifacts(_benchmark_plan(passed, request), phase)
        recommendation = recommend(report, request.limits)
        path = None
        if recommendation.winner:
            file = report.row(recommendation.winner).file
            winner = next(artifact for artifact in passed if artifact.path.name == file)
            path = _publish_winner(registry.open_artifact(winner.path), request.out)
    return AutoResult(path, report, mask_pairs, recommendation, rejected)


def format_choice(result: AutoResult, request: AutoRequest) -> str:
    """Format rejected candidates, benchmark and recommendation for the terminal."""
    lines = [f"not the same function as the weights: {reason}" for reason in result.rejected]
    lines += [
        format_benchmark(result.report),
        format_recommendation(result.report, result.recommendation, request.limits),
    ]
    return "\n".join(lines)


def _check_pictures(request: AutoRequest) -> None:
    """Refuse pictures that would calibrate int8 and check it too."""
    pictures = {resolved(path) for path in request.pictures}
    shared = pictures & {resolved(path) for path in request.calibration}
    if shared:
        raise InputError(f"{min(shared)} cannot calibrate and judge: give other --pictures")


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def _find_source(request: AutoRequest) -> Artifact:
    if not request.fallback:
        return weights.find(request.model, request.weights)
    source, note = weights.find_default(request.weights)
    if note:
        say(note)
    return source


def _export_candidates(
    request: AutoRequest, source: Artifact, folder: Path, phase: PhaseCallback
) -> Iterator[Artifact | U2ExportError]:
    """Export every candidate that this machine can export and run; yield what kept one from it."""
    model = MODELS[source.facts.model]
    if not request.calibration:
        say("int8 is left out: give it pictures with --calibration")
    lossy: set[str] = set()
    for backend in _usable_backends():
        for spec in _export_specs(backend, model, request, source):
            phase(f"exporting {backend.name} {spec.precision} for {spec.size} pixels")
            if spec.stem in lossy:
                continue
            try:
                yield build_artifact(backend.name, spec, source, folder, phase)
            except (InputError, OutputError):
                raise  # no place to write: for all that would follow, too
            except U2ExportError as error:
                yield error
                say(f"{spec.stem} of {backend.name} is left out: {error}")
                # Another backend would quantize to the same numbers.
                if spec.precision is Precision.INT8:
                    lossy.add(spec.stem)


def _why_none(failures: list[U2ExportError]) -> U2ExportError:
    if failures:
        return failures[0]
    return InputError("no backend can export and run here: u2export doctor says why")


def _export_specs(
    backend: Backend, model: ModelSpec, request: AutoRequest, source: Artifact
) -> Iterator[ExportSpec]:
    """Yield sizes and precisions that a backend can export."""
    precisions = (*PRECISIONS, *([Precision.INT8] if request.calibration else []))
    sizes = request.sizes or (model.picture.size,)
    for size, precision in itertools.product(sizes, precisions):
        size_allowed = size == model.picture.size or "size" in backend.export_options
        if precision in backend.precisions and size_allowed:
            yield ExportSpec(
                model,
                size,
                precision,
                quantization=_int8_request(request) if precision is Precision.INT8 else None,
                variant=source.facts.weights.variant,
            )


def _int8_request(request: AutoRequest) -> Quantization:
    """Request int8 that keeps the limits on masks; without such limits, the default ones."""
    default = Quantization(request.calibration)
    min_iou, max_mae = request.limits.min_iou, request.limits.max_mae
    return Quantization(
        request.calibration,
        min_iou=default.min_iou if min_iou is None else min_iou,
        max_mae=default.max_mae if max_mae is None else max_mae,
    )


def _usable_backends() -> Iterator[Backend]:
    """Yield the backends that can export and run here; say why others are left out."""
    for name in registry.names():
        try:
            backend = registry.load(name)
            registry.require_packages(backend, export=True)
        except DependencyError as error:
            say(f"{name} is left out: {error}")
            continue
        reason = backend.unavailable_reason(backend.devices[0])
        if reason:
            say(f"{name} is left out: {reason}")
        else:
            yield backend


def _check_candidates(
    candidates: list[Artifact], request: AutoRequest, phase: PhaseCallback
) -> tuple[list[Artifact], tuple[str, ...]]:
    """Keep and certify the candidates that are the same function as the weights.

    Returns:
        These candidates, and for each other one its name and the reason.

    Raises:
        ParityError: no candidate passed.
    """
    phase("judging the candidates, from file to mask")
    parity_request = ParityRequest(
        TORCH_REFERENCE,
        tuple(artifact.path for artifact in candidates),
        request.pictures,
        weights=request.weights,
        run=request.run,
        command=request.command,
    )
    report, _ = check_parity(parity_request)
    for message in certify_passed(parity_request, report):
        say(message)
    results = list(zip(candidates, report.candidates, strict=True))
    passed = [artifact for artifact, result in results if result.passed]
    rejected = tuple(
        f"{artifact.path.name}: {failure_reason(result)}"
        for artifact, result in results
        if not result.passed
    )
    if not passed:
        raise ParityError(f"no candidate is the same function as the weights: {rejected[0]}")
    return passed, rejected


def _benchmark_plan(candidates: list[Artifact], request: AutoRequest) -> BenchmarkPlan:
    return BenchmarkPlan(
        artifacts=tuple(artifact.path for artifact in candidates),
        pictures=request.pictures,
        weights=request.weights,
        run=request.run,
        seconds=request.seconds,
        command=request.command,
    )


def _publish_winner(winner: Artifact, out: Path) -> Path:
    """Publish the winner in its folder, completely or not at all; return its path."""
    try:
        with workspace(out / winner.path.name) as folder:
            for name in winner.files:
                shutil.copyfile(winner.path.with_name(name), folder / name)
            publish(dataclasses.replace(winner, path=folder / winner.path.name), folder, out)
    except OSError as error:
        raise write_error(out / winner.path.name, error) from error
    return out / winner.path.name
