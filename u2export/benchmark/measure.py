"""The benchmark: how fast is each artifact on this machine, and is its mask correct?"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from u2export.benchmark import stats
from u2export.benchmark.candidates import (
    MEDIAN_SAMPLES,
    Block,
    Candidate,
    create_candidates,
    find_baseline,
    measurable,
    start_worker,
)
from u2export.benchmark.energy import EnergyMeter, GpuMeter
from u2export.benchmark.masks import compare_masks
from u2export.benchmark.plan import MAX_PICTURES, BenchmarkPlan, check_plan, write_synthetic_images
from u2export.benchmark.report import BenchmarkReport, MaskAccuracy, Ratio, Row, Throughput
from u2export.benchmark.rounds import measure_once, run_rounds, waiting_shares, widest_interval
from u2export.core import registry
from u2export.core.enums import Device
from u2export.reports.mask_pair import MaskPair
from u2export.reports.text import printable
from u2export.system import hardware
from u2export.system.files import scratch_folder
from u2export.system.progress import PhaseCallback

# Above this half width of an interval a report is not stable, and advises a longer measurement.
MAX_STABLE_HALF_WIDTH = 0.03
SWEEP_SECONDS = 1.5  # longest duration per batch or number of streams in the throughput sweep
_MAX_DURATION_FACTOR = 20  # of the advice to measure longer


def measure_artifacts(
    plan: BenchmarkPlan, phase: PhaseCallback = lambda name: None
) -> tuple[BenchmarkReport, list[MaskPair]]:
    """Measure every artifact in interleaved rounds.

    Args:
        plan: what to measure, and how.
        phase: called with the name of each phase.

    Returns:
        The report, and the worst picture of each row with its masks.

    Raises:
        InputError: there is nothing to measure, or an option cannot be used.
        ArtifactError: a file was changed.
    """
    check_plan(plan)
    started = time.perf_counter()
    with scratch_folder() as name, ExitStack() as stack:
        folder = Path(name)
        pictures = plan.pictures[:MAX_PICTURES] or write_synthetic_images(folder)
        candidates = [c for path in plan.artifacts for c in create_candidates(path, plan)]
        find_baseline(candidates, plan)  # refuses a wrong name now, and not after the work
        gpu = GpuMeter.detect()
        for candidate in candidates:
            start_worker(candidate, plan, pictures, folder, stack, gpu, phase)
        fixed_work = run_rounds(candidates, plan, EnergyMeter(gpu), phase)
        for candidate in measurable(candidates):
            measure_once(candidate, folder, min(SWEEP_SECONDS, plan.seconds / 20), phase)
        stack.close()  # ends the workers: the reference has the machine for itself
        masks, mask_pairs, reference = compare_masks(candidates, plan, pictures, folder, phase)
    rows = tuple(
        _report_row(candidate, plan, masks.get(candidate.name, "it gave no mask"))
        for candidate in candidates
    )
    names = tuple(printable(path.name) for path in pictures)
    seconds = time.perf_counter() - started
    return _report(plan, candidates, rows, names, reference, fixed_work, seconds), mask_pairs


def _report(
    plan: BenchmarkPlan,
    candidates: list[Candidate],
    rows: tuple[Row, ...],
    pictures: tuple[str, ...],
    reference: str,
    fixed_work: list[list[float]],
    seconds: float,
) -> BenchmarkReport:
    baseline = find_baseline(candidates, plan)
    backends = [candidate.artifact.backend for candidate in candidates if candidate.artifact]
    return BenchmarkReport(
        created=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        command=printable(plan.command),
        machine=hardware.describe_machine(),
        versions=registry.package_versions(["torch", *backends]),
        reference=reference,
        pictures=pictures,
        baseline=baseline.name if baseline else "",
        rows=rows,
        ratios=tuple(_ratios(candidates, baseline)),
        calibration_ms=float(np.median(np.concatenate(fixed_work))),
        calibration=tuple(tuple(block) for block in fixed_work),
        seconds=round(seconds, 1),
        stable=widest_interval(candidates, baseline) <= MAX_STABLE_HALF_WIDTH,
        notes=tuple(_notes(candidates, baseline, plan)),
    )


def _ratios(candidates: list[Candidate], baseline: Candidate | None) -> Iterator[Ratio]:
    """Compare the latency per picture of each candidate with the baseline's."""
    if baseline is None:
        return
    for candidate in measurable(candidates):
        if candidate is baseline or len(baseline.samples) < stats.MIN_VALUES:
            continue
        scale = baseline.measurements["batch"] / candidate.measurements["batch"]
        ratio = stats.latency_ratio(candidate.samples, baseline.samples, scale)
        yield Ratio(
            name=candidate.name,
            ratio=ratio.value,
            low=ratio.low,
            high=ratio.high,
            verdict=stats.verdict(ratio),
        )


def _report_row(candidate: Candidate, plan: BenchmarkPlan, mask: MaskAccuracy | str) -> Row:
    facts = candidate.artifact.facts if candidate.artifact else None
    has_latency = candidate.samples and not candidate.failure
    return Row(
        name=candidate.name,
        file=printable(candidate.path.name),
        backend=candidate.artifact.backend if candidate.artifact else "?",
        precision=str(candidate.precision or (facts.precision if facts else "?")),
        threads=plan.run.threads or hardware.usable_cpus(),
        size=facts.size if facts else 0,
        latency=(
            stats.summarize_latency(candidate.samples, candidate.disturbed_samples)
            if has_latency
            else None
        ),
        mask=mask if isinstance(mask, MaskAccuracy) else None,
        unjudged=mask if isinstance(mask, str) and not candidate.failure else "",
        failed=candidate.failure,
        notes=tuple(candidate.notes),
        **_measured_fields(candidate.measurements, str(plan.run.device or Device.CPU)),
        **_block_fields(candidate.counted_blocks),
    )


def _measured_fields(measurements: dict[str, Any], default_device: str) -> dict[str, Any]:
    """Return the fields of a row that the worker measured outside of the rounds."""
    rates = measurements.get("throughput") or {}
    best = max(rates, key=lambda setting: float(rates[setting]), default="")
    memory = measurements.get("memory", {})
    gpu_samples = measurements.get("gpu_samples") or []
    return {
        "device": measurements.get("device", default_device),
        "batch": measurements.get("batch") or 1,
        "files": measurements.get("files", {}),
        "size_mb": measurements.get("size_mb", 0.0),
        "runtime": measurements.get("runtime", ""),
        "ran": measurements.get("ran", ""),
        "import_ms": measurements.get("import_ms"),
        "load_ms": measurements.get("load_ms"),
        "first_ms": measurements.get("first_ms"),
        "throughput": Throughput(pictures=rates[best], how=best, tried=rates) if rates else None,
        "stages": measurements.get("stages", {}),
        "memory_mb": memory["peak_mb"] - memory["baseline_mb"] if memory else None,
        "baseline_mb": memory.get("baseline_mb"),
        "gpu_mb": measurements.get("gpu_mb"),
        "gpu_ms": float(np.median(gpu_samples)) if gpu_samples else None,
        "gpu_samples": tuple(gpu_samples),
    }


def _block_fields(blocks: list[Block]) -> dict[str, Any]:
    """Return the fields of a row that its blocks measured."""
    metered = [(block.joules, block.pictures) for block in blocks if block.joules is not None]
    joules, pictures = sum(joules for joules, _ in metered), sum(count for _, count in metered)
    return {
        "cpu_ms": float(np.median([block.cpu_ms for block in blocks])) if blocks else None,
        "joules": joules / pictures if metered else None,
    }


def _notes(
    candidates: list[Candidate], baseline: Candidate | None, plan: BenchmarkPlan
) -> Iterator[str]:
    if plan.baseline and baseline is None:
        yield f"no ratio is told: {plan.baseline} was not measured"
    half_width = widest_interval(candidates, baseline)
    if half_width > MAX_STABLE_HALF_WIDTH and math.isfinite(half_width):
        factor = min((half_width / MAX_STABLE_HALF_WIDTH) ** 2, _MAX_DURATION_FACTOR)
        yield (
            f"the widest interval reaches {half_width:.1%} to each side of its ratio: "
            f"--duration {plan.seconds * factor:.0f} would narrow it"
        )
    measured = measurable(candidates)
    yield from _disturbance_notes(measured)
    few = [candidate.name for candidate in measured if candidate.sample_count < MEDIAN_SAMPLES]
    if few:
        yield f"fewer than {MEDIAN_SAMPLES} samples, too few for a sure median: {', '.join(few)}"
    if len(plan.pictures) > MAX_PICTURES:
        yield f"of {len(plan.pictures)} pictures the first {MAX_PICTURES} were taken"


def _disturbance_notes(candidates: list[Candidate]) -> Iterator[str]:
    disturbed = stats.disturbed_rounds(waiting_shares(candidates))
    if disturbed:
        rounds = len(candidates[0].blocks)
        all_count = len(candidates[0].counted_rounds) == rounds
        consequence = (
            "too few were undisturbed, so all count" if all_count else "they count for nothing"
        )
        yield (f"in {len(disturbed)} of {rounds} rounds threads waited for a core: {consequence}")
