"""Candidates: the rows of a benchmark while they are measured, each with its worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from u2export.benchmark.energy import GpuMeter
from u2export.benchmark.plan import BenchmarkPlan
from u2export.benchmark.worker import WorkerSpec
from u2export.benchmark.worker_process import WorkerError, WorkerProcess
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.enums import Device, Precision
from u2export.core.models import PictureSpec
from u2export.core.requests import RunSpec
from u2export.errors import ArtifactError, DependencyError, InputError
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.reports.text import printable
from u2export.system.progress import PhaseCallback

# Fewest samples for a median with 99 percent confidence; source: as for `stats.PERCENTILES`.
MEDIAN_SAMPLES = 11
CANNOT_RUN = "cannot run here: "


@dataclass(frozen=True)
class Block:
    """What a worker measured in one round.

    Attributes:
        samples: ms per call.
        cpu_ms: processor time per picture.
        waiting_share: share of the time that threads waited for a core.
        joules: energy of all pictures; None if it cannot be read.
        pictures: number of pictures, those of the warm-up included.
    """

    samples: list[float]
    cpu_ms: float
    waiting_share: float
    joules: float | None
    pictures: int


@dataclass
class Candidate:
    """An artifact at one batch size while it is measured.

    Attributes:
        name: name of its row.
        artifact: None if its backend is not installed.
        path: the model file.
        precision: precision that the run demands, if any.
        worker: None before it starts.
        measurements: answers of the worker, by field. `batch` is the requested batch at first.
        blocks: one block per round.
        counted_rounds: indexes of the rounds that count.
        saliency: saliency maps by `picture/index`, as `ArtifactMeter.save_saliency` names them.
        failure: phrase that says why there is no measurement; empty otherwise.
        notes: remarks for the report.
    """

    name: str
    artifact: Artifact | None
    path: Path
    precision: Precision | None = None
    worker: WorkerProcess | None = None
    measurements: dict[str, Any] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    counted_rounds: list[int] = field(default_factory=list)
    saliency: dict[str, Array] = field(default_factory=dict)
    failure: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def counted_blocks(self) -> list[Block]:
        """The blocks of the rounds that count."""
        return [self.blocks[index] for index in self.counted_rounds]

    @property
    def samples(self) -> list[list[float]]:
        """Latencies of the rounds that count: ms, one list per round."""
        return [block.samples for block in self.counted_blocks]

    @property
    def disturbed_samples(self) -> list[list[float]]:
        """Latencies of the other rounds: ms, one list per round."""
        indexes = sorted(set(range(len(self.blocks))).difference(self.counted_rounds))
        return [self.blocks[index].samples for index in indexes]

    @property
    def sample_count(self) -> int:
        """Number of samples that count."""
        return sum(len(samples) for samples in self.samples)


def create_candidates(path: Path, plan: BenchmarkPlan) -> list[Candidate]:
    """Create one candidate for each batch that the file accepts.

    If it accepts none of them, or is damaged, or its backend is not installed, the candidates say
    so in `failure`.

    Raises:
        InputError: there is no such file.
        ArtifactError: it is the only file, and was changed.
    """
    batches: tuple[int | None, ...] = plan.batches or (None,)
    try:
        artifact = registry.with_stored_precision(registry.open_artifact(path, plan.model))
    except (ArtifactError, DependencyError) as error:
        refused = isinstance(error, ArtifactError)
        if refused and len(plan.artifacts) == 1:  # nothing else is to be measured
            raise
        failure = f"{'it was refused: ' if refused else CANNOT_RUN}{error}"
        names = [_row_name(path, batch, plan) for batch in batches]
        return [Candidate(name, None, path, failure=failure) for name in names]
    fixed = None if artifact.foreign else artifact.facts.batch
    accepted = tuple(batch for batch in batches if None in (batch, fixed) or batch == fixed)
    if not accepted:
        candidates = [_create_candidate(artifact, path, batch, plan) for batch in batches]
        for candidate, batch in zip(candidates, batches, strict=True):
            candidate.failure = f"it takes batches of {fixed}, not of {batch}"
        return candidates
    candidates = [_create_candidate(artifact, path, batch, plan) for batch in accepted]
    if accepted != batches:
        names = [_row_name(path, batch, plan) for batch in batches if batch not in accepted]
        candidates[0].notes.append(f"its batch is fixed, so there is no {', '.join(names)}")
    return candidates


def _create_candidate(
    artifact: Artifact, path: Path, batch: int | None, plan: BenchmarkPlan
) -> Candidate:
    name = _row_name(path, batch, plan)
    return Candidate(name, artifact, path, plan.run.precision, measurements={"batch": batch})


def _row_name(path: Path, batch: int | None, plan: BenchmarkPlan) -> str:
    """Return the name of a row."""
    name = printable(path.name) + (f" b{batch}" if batch and batch > 1 else "")
    return f"{name} #{plan.artifacts.index(path)}" if plan.delays else name


def start_worker(
    candidate: Candidate,
    plan: BenchmarkPlan,
    pictures: tuple[Path, ...],
    folder: Path,
    stack: ExitStack,
    gpu: GpuMeter | None,
    phase: PhaseCallback,
) -> None:
    """Start the worker of a candidate and load its artifact.

    A failure is recorded in the candidate.

    Args:
        candidate: gets the worker and the times of loading.
        plan: how to run the artifact.
        pictures: picture files.
        folder: folder for the preprocessed pictures.
        stack: ends the worker at its end.
        gpu: meter of GPU memory, if there is one.
        phase: called with the name of the phase.
    """
    if candidate.failure or candidate.artifact is None:
        return
    try:
        run_spec = _resolve_run_spec(candidate.artifact, plan)
    except DependencyError as error:
        candidate.failure = f"{CANNOT_RUN}{error}"
        return
    phase(f"loading {candidate.name}")
    spec = _worker_spec(candidate, candidate.artifact, plan, pictures, folder)
    worker = candidate.worker = stack.enter_context(WorkerProcess(spec))
    gpu = gpu if run_spec.device is Device.CUDA else None
    before_mb = gpu.used_memory_mb() if gpu else None
    with record_failure(candidate):
        candidate.measurements = worker.open()
    after_mb = gpu.used_memory_mb() if gpu else None
    if before_mb is not None and after_mb is not None:
        candidate.measurements["gpu_mb"] = after_mb - before_mb


def _resolve_run_spec(artifact: Artifact, plan: BenchmarkPlan) -> RunSpec:
    """Return how the artifact runs.

    Raises:
        DependencyError: it cannot run on this machine.
    """
    backend = registry.load(artifact.backend)
    run_spec = registry.resolve_run_spec(backend, plan.run)
    reason = backend.unavailable_reason(run_spec.device)
    reason = reason or backend.unsupported_reason(artifact, run_spec)
    if reason:
        raise DependencyError(reason)
    return run_spec


def _worker_spec(
    candidate: Candidate,
    artifact: Artifact,
    plan: BenchmarkPlan,
    pictures: tuple[Path, ...],
    folder: Path,
) -> WorkerSpec:
    index = plan.artifacts.index(candidate.path)
    return WorkerSpec(
        artifact=candidate.path,
        backend=artifact.backend,
        inputs=save_network_inputs(artifact.facts.picture, pictures, folder),
        model=plan.model,
        run=plan.run,
        batch=candidate.measurements["batch"],
        pictures=pictures,
        delay=plan.delays[index] if plan.delays else 0.0,
    )


def save_network_inputs(spec: PictureSpec, pictures: tuple[Path, ...], folder: Path) -> Path:
    """Save the preprocessed pictures, (N,3,size,size) float32; return the .npy file.

    Workers load this file. So none of them holds a decoded picture in memory.
    """
    path = folder / f"inputs-{abs(hash(spec))}.npy"
    if not path.exists():
        inputs = [preprocess(open_image(picture), spec) for picture in pictures]
        np.save(path, np.concatenate(inputs))
    return path


@contextmanager
def record_failure(candidate: Candidate) -> Iterator[None]:
    """Record a worker's failure in its candidate. Other candidates are not affected."""
    try:
        yield
    except WorkerError as error:
        candidate.failure = printable(str(error))


def measurable(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates that have not failed."""
    return [candidate for candidate in candidates if not candidate.failure]


def find_baseline(candidates: list[Candidate], plan: BenchmarkPlan) -> Candidate | None:
    """Return the candidate that ratios refer to; None if it was not measured.

    Raises:
        InputError: no candidate has the requested name.
    """
    measured = [candidate for candidate in measurable(candidates) if candidate.samples]
    if plan.baseline is None:
        return measured[0] if measured else None
    baseline = next((c for c in candidates if c.name == plan.baseline), None)
    if baseline is None:
        names = ", ".join(candidate.name for candidate in candidates)
        raise InputError(f"no row is called {plan.baseline!r}: choose one of {names}")
    return baseline if baseline in measured else None
