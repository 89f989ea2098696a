"""The reference and the candidates of a parity check, opened and ready to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from u2export.compare.budgets import BUDGETS, Budget, budget_for
from u2export.compare.stages import Pipeline, PipelineTrace
from u2export.core import registry
from u2export.core.artifact import Artifact, manifest_path
from u2export.core.enums import Precision
from u2export.core.execution import DEFAULT_INT8_SHARE, Execution, check_execution
from u2export.core.models import PictureSpec
from u2export.core.requests import RunRequest
from u2export.errors import (
    ArtifactError,
    DependencyError,
    ExportError,
    InputError,
    OutputError,
    ParityError,
)
from u2export.network import weights
from u2export.parity.report import CaseResult, RuntimeInfo
from u2export.parity.request import TORCH_REFERENCE, ParityRequest
from u2export.reports.text import printable
from u2export.system.documents import is_there
from u2export.system.progress import say

COMPUTES = "computes what it says"  # a property
_MAX_NOTES = 5  # modules named in an emulated candidate's notes


@dataclass(frozen=True)
class ShownCase:
    """One case of one candidate, to show or to replay.

    Attributes:
        candidate: the candidate's name in the report.
        case: the case's name.
        content: bytes of the picture file.
        reference_trace: what the reference's pipeline gave at each stage.
        candidate_trace: what the candidate's pipeline gave at each stage.
    """

    candidate: str
    case: str
    content: bytes
    reference_trace: PipelineTrace
    candidate_trace: PipelineTrace

    @property
    def picture(self) -> NDArray[np.uint8]:
        """The decoded picture, (H,W,3)."""
        return self.reference_trace.picture


@dataclass
class Candidate:
    """A candidate during a check.

    Attributes:
        info: what the report says of it.
        budget: how far it may differ.
        spec: its preprocessing.
        open_pipeline: opens its pipeline; None where it cannot run here.
        artifact: its artifact; None where it is emulated or cannot run here.
        missing: why it cannot run here, as a sentence.
        refused: why its file or its runtime refuses it, as a sentence.
        cases: its results so far.
        shown_cases: its cases worth showing, so far.
        notes: gives other observations at the end of the check.
    """

    info: RuntimeInfo
    budget: Budget
    spec: PictureSpec
    open_pipeline: Callable[[], AbstractContextManager[Pipeline]] | None = None
    artifact: Artifact | None = None
    missing: str = ""
    refused: str = ""
    cases: list[CaseResult] = field(default_factory=list)
    shown_cases: list[ShownCase] = field(default_factory=list)
    notes: Callable[[], tuple[str, ...]] = lambda: ()


def open_reference(request: ParityRequest, candidates: list[Artifact]) -> Artifact:
    """Open the reference: a model file, or the weights the candidates were made from.

    Raises:
        InputError: there is no such file, or the candidates were made from different weights.
        ArtifactError: a file was changed.
        DependencyError: a runtime or the weights are absent.
    """
    if request.reference == TORCH_REFERENCE:
        return weights.shared_source(candidates, request.model, request.weights)
    path = Path(request.reference)
    model = request.model if not is_there(manifest_path(path)) else None
    artifact = registry.open_artifact(path, model)
    return registry.with_runtime_facts(artifact) if artifact.foreign else artifact


@contextmanager
def reference_pipeline(
    reference: Artifact, size: int, request: ParityRequest
) -> Iterator[Pipeline]:
    """Open the reference's pipeline; weights run at any input size, `size` pixels a side."""
    if reference.backend == TORCH_REFERENCE:
        reference = reference.with_facts(size=size)
    with registry.open_runner(reference, RunRequest(threads=request.run.threads)) as runner:
        spec = dataclasses.replace(reference.facts.picture, size=size)
        yield Pipeline("the reference", runner.single, spec)


def prepare_candidate(
    path: Path, opened: Artifact | DependencyError | ArtifactError, request: ParityRequest
) -> Candidate:
    """Try to run a candidate, and describe what runs it.

    Args:
        path: its file.
        opened: the artifact; or the error that kept it from being opened.
        request: how to run it.

    Returns:
        The candidate; without a pipeline where a package, runtime or device is absent, and where
        the file is damaged or the runtime refuses it, also when it computes.

    Raises:
        InputError: the backend has no such option.
        OutputError: the disk is full.
        ParityError: the runtime does something else than requested.
    """
    if not isinstance(opened, Artifact):
        absent = isinstance(opened, DependencyError)
        name = "?" if absent else printable(path.name)
        unknown = RuntimeInfo(name=name, backend="?", precision="?")
        candidate = Candidate(unknown, BUDGETS[Precision.FP32], PictureSpec())
        candidate.missing, candidate.refused = (str(opened), "") if absent else ("", str(opened))
        return candidate
    spec, budget = opened.facts.picture, budget_for(opened, request.budgets)
    if request.resample:
        spec = dataclasses.replace(spec, resize=request.resample)
    try:
        with registry.open_runner(opened, request.run) as runner:
            execution = runner.executed()
            _check_batch(opened, runner.batch)
        if not opened.foreign:  # its budget is that of what it says, so it must compute that
            run_spec = registry.resolve_run_spec(registry.load(opened.backend), request.run)
            check_execution(_at_least_half(execution), run_spec, opened.path.name)
    except ParityError as error:
        case = CaseResult(name=COMPUTES, kind="property", passed=False, reasons=(str(error),))
        return Candidate(runtime_info(opened), budget, spec, cases=[case])
    except DependencyError as error:
        return Candidate(runtime_info(opened), budget, spec, missing=str(error))
    except OutputError:
        raise  # the disk is full, and no fault of the file
    except (ArtifactError, ExportError) as error:
        return Candidate(runtime_info(opened), budget, spec, refused=str(error))
    info = runtime_info(opened, execution.runtime, execution.summary())

    @contextmanager
    def open_pipeline() -> Iterator[Pipeline]:
        with registry.open_runner(opened, request.run) as runner:
            yield Pipeline(info.name, runner.single, spec)

    return Candidate(info, budget, spec, open_pipeline, opened)


def _check_batch(artifact: Artifact, batch: int | None) -> None:
    if not artifact.foreign and artifact.facts.batch != batch:
        raise ArtifactError(
            f"{artifact.path} says that its batch is {artifact.facts.batch or 'free'}, and it is "
            f"{batch or 'free'}"
        )


def _at_least_half(execution: Execution) -> Execution:
    """Let a file demand more arithmetic in int8 than the judge does, and not less."""
    share = max(DEFAULT_INT8_SHARE, execution.whole or 0.0)
    return execution.model_copy(update={"whole": share})


def emulated_candidate(
    precision: Precision, request: ParityRequest, reference: Artifact
) -> Candidate:
    """Emulate the reference's weights on a device whose arithmetic is `precision`.

    Raises:
        InputError: the reference is no weights file, or the precision cannot be emulated.
        ExportError: a parameter overflows the precision.
    """
    if reference.backend != TORCH_REFERENCE:
        raise InputError("precisions are emulated on weights: let the reference be torch")
    from u2export.compare.emulate import EmulatedNetwork
    from u2export.network import checkpoint

    network = EmulatedNetwork(checkpoint.load_network(reference, say), precision)
    info = runtime_info(reference, ran=f"every operation rounded to {precision}").model_copy(
        update={"name": f"emulated {precision}", "precision": str(precision), "how": "emulated"}
    )
    spec = reference.facts.picture
    pipeline = Pipeline(info.name, lambda x: network(x)[0, 0], spec)

    def notes() -> tuple[str, ...]:
        worst = sorted(network.underflow_shares.items(), key=lambda item: -item[1])[:_MAX_NOTES]
        return tuple(f"{share:.0%} of what {name} gave became zero" for name, share in worst)

    budget = request.budgets[precision]
    return Candidate(info, budget, spec, lambda: nullcontext(pipeline), notes=notes)


def runtime_info(artifact: Artifact, runtime: str = "", ran: str = "") -> RuntimeInfo:
    """Describe an artifact and what ran it for the report."""
    return RuntimeInfo(
        name=printable(artifact.path.name),
        backend=artifact.backend,
        precision=str(artifact.facts.precision),
        files=dict(artifact.files),
        weights=artifact.facts.weights.sha256,
        runtime=runtime,
        ran=ran,
    )
