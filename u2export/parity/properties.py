"""Properties of an artifact: the same twice, in a batch, on one thread, built again."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from u2export.compare.budgets import Budget
from u2export.compare.metrics import compare_maps
from u2export.compare.probe_images import SYNTHETIC_SEEDS, Case, synthetic_cases
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.backend import Runner
from u2export.core.enums import Stage
from u2export.core.facts import Facts
from u2export.core.models import PictureSpec, find_model
from u2export.core.requests import ExportSpec
from u2export.errors import DependencyError, ExportError, ParityError, U2ExportError
from u2export.export.build import build_artifact
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.network import weights
from u2export.parity.candidates import Candidate
from u2export.parity.report import CaseResult
from u2export.parity.request import ParityRequest
from u2export.system import fixed_process, hardware
from u2export.system.files import resolved, scratch_folder

BATCH_SIZE = 8  # pictures in the batch that is compared with single calls
QUICK_BATCH_SIZE = 2  # in a quick check
# Variables for the rebuild's process: where this user's caches are, and whether it may download.
_REBUILD_VARIABLES = ("U2EXPORT_", "XDG_")


def check_properties(candidate: Candidate, request: ParityRequest) -> Iterator[CaseResult]:
    """Check a candidate's properties; only the first two unless the request is thorough.

    Raises:
        U2ExportError: the candidate cannot run.
    """
    assert candidate.artifact
    budget = candidate.budget
    inputs = [
        _network_input(case, candidate.spec) for case in synthetic_cases(len(SYNTHETIC_SEEDS))
    ]
    with registry.open_runner(candidate.artifact, request.run) as runner:
        try:
            single = runner.single(inputs[0])
            yield _property_result("the same twice", [(single, runner.single(inputs[0]))], budget)
        except (ExportError, ParityError):
            yield CaseResult(
                name="the same twice",
                kind="property",
                passed=False,
                reasons=("it gives NaN or infinite values, or its runtime fails",),
            )
            return
        count = BATCH_SIZE if request.thorough else QUICK_BATCH_SIZE
        yield _check_batch(runner, inputs, budget, count)
        if not request.thorough:
            return
    for name, check in (("one thread and all", _check_threads), ("rebuilt", _check_rebuilt)):
        try:
            yield check(candidate, inputs[0], single, request)
        except DependencyError as error:
            yield _skipped(name, str(error))
        except U2ExportError as error:
            yield CaseResult(name=name, kind="property", passed=False, reasons=(str(error),))


def _network_input(case: Case, spec: PictureSpec) -> Array:
    """A case's picture as the network's input, (1,3,size,size) float32."""
    return preprocess(open_image(io.BytesIO(case.read())), spec)


def _check_batch(runner: Runner, inputs: list[Array], budget: Budget, most: int) -> CaseResult:
    name = "a batch and its pictures alone"
    # a fixed batch of more pictures is what the file is called with
    count = max(runner.min_batch, min(most, runner.max_batch or most))
    if runner.max_batch == 1:
        return _skipped(name, "it takes one picture at a time")
    batch = [inputs[i % len(inputs)] for i in range(count)]
    outputs = runner(np.concatenate(batch))
    pairs = [(runner.single(x), y[0]) for x, y in zip(batch, outputs, strict=True)]
    return _property_result(name, pairs, budget)


def _check_threads(
    candidate: Candidate, x: Array, expected: Array, request: ParityRequest
) -> CaseResult:
    assert candidate.artifact
    name = "one thread and all"
    if hardware.usable_cpus() == 1:
        return _skipped(name, "this machine has one CPU")
    one_thread = dataclasses.replace(request.run, threads=1)
    with registry.open_runner(candidate.artifact, one_thread) as runner:
        return _property_result(name, [(expected, runner.single(x))], candidate.budget)


def _check_rebuilt(
    candidate: Candidate, x: Array, expected: Array, request: ParityRequest
) -> CaseResult:
    assert candidate.artifact
    name, facts = "rebuilt", candidate.artifact.facts
    if candidate.artifact.foreign:
        return _skipped(name, "u2export did not make it")
    try:
        source = weights.source_of(facts, request.weights)
    except U2ExportError as error:
        return _skipped(name, str(error))
    with scratch_folder() as folder:
        rebuilt = _rebuild(candidate.artifact, source, Path(folder))
        with registry.open_runner(rebuilt, request.run) as runner:
            output = runner.single(x)
    return _property_result(name, [(expected, output)], candidate.budget)


def _skipped(name: str, reason: str) -> CaseResult:
    return CaseResult(name=name, kind="property", passed=True, skipped=reason)


def _property_result(name: str, pairs: list[tuple[Array, Array]], budget: Budget) -> CaseResult:
    """Compare pairs of maps that should be the same, by the budget of their precision."""
    differences = [compare_maps(expected, output) for expected, output in pairs]
    worst = max(differences, key=lambda difference: difference.raw_mean)
    reasons = [
        f"{metric} {getattr(worst, metric):.3g}, allowed {getattr(budget, metric):g}"
        for metric in ("raw_max", "raw_mean")
        if getattr(budget, metric) is not None
        and not getattr(worst, metric) <= getattr(budget, metric)
    ]
    return CaseResult(
        name=name,
        kind="property",
        passed=not reasons,
        stage=str(Stage.INFER) if reasons else "",
        reasons=tuple(reasons),
    )


class _RebuildRequest(BaseModel):
    """What the rebuild's process gets.

    Attributes:
        backend: the artifact's backend.
        facts: the artifact's facts.
        weights: the value that `--weights` would have.
        folder: where the new artifact goes.
        environment: variables that the process sets.
    """

    model_config = ConfigDict(frozen=True)

    backend: str
    facts: Facts
    weights: str
    folder: Path
    environment: dict[str, str]


def _rebuild(artifact: Artifact, source: Artifact, folder: Path) -> Artifact:
    """Build an artifact again in another process, which gives its memory back."""
    request = _RebuildRequest(
        backend=artifact.backend,
        facts=artifact.facts,
        weights=_weights_option(source),
        folder=folder,
        environment={
            name: value for name, value in os.environ.items() if name.startswith(_REBUILD_VARIABLES)
        },
    )
    process = fixed_process.run_function(rebuild_process, "", request.model_dump_json().encode())
    output = process.stdout.decode(errors="replace")
    if process.returncode:
        raise ExportError(f"{artifact.path} could not be built again: {output or 'no reason'}")
    return registry.open_artifact(Path(output))


def _weights_option(source: Artifact) -> str:
    """The value that `--weights` would have."""
    facts = source.facts.weights
    return facts.name if facts.origin == "random" else str(resolved(source.path))


def rebuild_process(_argument: str) -> None:
    """Run the rebuild's process: print the artifact's path, or why there is none.

    The request comes on standard input: some systems take no argument of its length.
    """
    request = _RebuildRequest.model_validate_json(sys.stdin.buffer.read())
    os.environ.update(request.environment)
    try:
        source = weights.source_of(request.facts, request.weights)
        spec = _export_spec(request.facts)
        artifact = build_artifact(request.backend, spec, source, request.folder)
    except U2ExportError as error:
        _write_utf8(error)
        sys.exit(error.exit_status)
    _write_utf8(artifact.path)


def _write_utf8(answer: object) -> None:
    """Print for `_rebuild`, whatever encoding the system gives a pipe."""
    sys.stdout.buffer.write(str(answer).encode())


def _export_spec(facts: Facts) -> ExportSpec:
    """The request that an artifact was built for, but for its opset, which it does not record."""
    return ExportSpec(
        find_model(facts.model),
        facts.size,
        facts.precision,
        facts.batch,
        all_outputs=facts.outputs > 1,
        profile=facts.profile,
    )
