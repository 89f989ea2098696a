"""Rounds of a benchmark: all workers measure in turn until the intervals are narrow."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from u2export.benchmark import stats
from u2export.benchmark.candidates import (
    MEDIAN_SAMPLES,
    Block,
    Candidate,
    find_baseline,
    measurable,
    record_failure,
)
from u2export.benchmark.energy import EnergyMeter
from u2export.benchmark.plan import BenchmarkPlan
from u2export.benchmark.worker import SETTLE_SECONDS
from u2export.benchmark.worker_process import WorkerError
from u2export.reports.text import printable
from u2export.system.progress import PhaseCallback

# Blocks are as short as possible. The speed of a machine drifts, and blocks that follow each other
# closely have most of this drift in common.
BLOCK_SECONDS = 0.05  # shortest duration of a block
MIN_SAMPLES = 1  # of a block
# Fewest rounds before the measurement may end early. It ends when an interval happens to be narrow,
# and few rounds make narrow intervals likely by chance.
MIN_ROUNDS = 24
CHECK_INTERVAL_FACTOR = 1.1  # number of rounds at the next check, relative to this check
NARROW_HALF_WIDTH = 0.01  # half width of a ratio's interval at which the measurement may end early
STAGE_ROUNDS = 2
GPU_SAMPLES = 100  # timed by events of the GPU
_FIXED_WORK_SAMPLES = 2  # per round
_FIXED_WORK_NUMBERS = 20_000  # sorted in each sample


def run_rounds(
    candidates: list[Candidate], plan: BenchmarkPlan, energy: EnergyMeter, phase: PhaseCallback
) -> list[list[float]]:
    """Let all workers measure in turn until the intervals are narrow or the time is up.

    Returns:
        Samples of the fixed work, ms, one block per round that counts.
    """
    fixed_work: list[list[float]] = []
    rng, started, next_check = random.Random(0), time.perf_counter(), float(MIN_ROUNDS)
    while True:
        fixed_work.append(time_fixed_work())
        # In random order, so that no worker always follows the same one.
        _measure_blocks(measurable(rng.sample(candidates, len(candidates))), energy)
        remaining = measurable(candidates)
        counted_rounds = stats.undisturbed_rounds(waiting_shares(remaining))
        for candidate in remaining:
            candidate.counted_rounds = counted_rounds
        elapsed = time.perf_counter() - started
        phase(f"measuring in turns, {elapsed:.0f} of at most {plan.seconds:.0f} s")
        time_is_up = elapsed >= plan.seconds and len(fixed_work) >= stats.MIN_VALUES
        check = len(fixed_work) >= next_check
        if time_is_up or not remaining or (check and _is_narrow(candidates, plan)):
            return [fixed_work[index] for index in counted_rounds] or fixed_work
        if check:
            next_check *= CHECK_INTERVAL_FACTOR


def _measure_blocks(candidates: Iterable[Candidate], energy: EnergyMeter) -> None:
    for candidate in candidates:
        assert candidate.worker
        with record_failure(candidate):
            energy.consumed_joules()  # sets the counters back
            answer = candidate.worker.call(
                "measure_block", seconds=BLOCK_SECONDS, min_samples=MIN_SAMPLES
            )
            candidate.blocks.append(Block(**answer, joules=energy.consumed_joules()))


def waiting_shares(candidates: list[Candidate]) -> list[list[float]]:
    """Return for each candidate and round the share of time that threads waited for a core."""
    return [[block.waiting_share for block in candidate.blocks] for candidate in candidates]


def _is_narrow(candidates: list[Candidate], plan: BenchmarkPlan) -> bool:
    remaining = measurable(candidates)
    if len(remaining[0].counted_rounds) < MIN_ROUNDS:
        return False
    if any(candidate.sample_count < MEDIAN_SAMPLES for candidate in remaining):
        return False
    return widest_interval(candidates, find_baseline(candidates, plan)) <= NARROW_HALF_WIDTH


def widest_interval(candidates: list[Candidate], baseline: Candidate | None) -> float:
    """Return the half width of the widest interval of the ratios, or of a single latency."""
    measured = [candidate for candidate in measurable(candidates) if candidate.samples]
    if baseline is None or not measured:
        return math.inf
    if len(measured) == 1:
        latency = stats.summarize_latency(measured[0].samples)
        return (latency.high - latency.low) / 2 / latency.median
    others = [candidate for candidate in measured if candidate is not baseline]
    ratios = [stats.latency_ratio(candidate.samples, baseline.samples) for candidate in others]
    return max(ratio.half_width for ratio in ratios)


def time_fixed_work() -> list[float]:
    """Time a fixed piece of work on one thread; return its samples, ms.

    The work is Python's own sort. A library's work would change with its releases and with the
    processor. The function waits first, because threads of the last worker may still spin.
    """
    numbers = _unsorted_numbers()
    time.sleep(SETTLE_SECONDS)
    samples = []
    for _ in range(_FIXED_WORK_SAMPLES):
        started = time.perf_counter()
        sorted(numbers)
        samples.append(1e3 * (time.perf_counter() - started))
    return samples


@cache
def _unsorted_numbers() -> list[int]:
    return random.Random(0).sample(range(_FIXED_WORK_NUMBERS), _FIXED_WORK_NUMBERS)


def measure_once(
    candidate: Candidate, folder: Path, seconds_per_setting: float, phase: PhaseCallback
) -> None:
    """Measure what needs no rounds: memory, stages, saliency and throughput.

    Memory comes first, because the other measurements need more of it.

    Args:
        candidate: gets the measurements.
        folder: folder for the saliency maps.
        seconds_per_setting: duration per batch or number of streams in the throughput sweep.
        phase: called with the name of the phase.
    """
    assert candidate.worker
    phase(f"stages, memory and throughput of {candidate.name}")
    worker, measurements = candidate.worker, candidate.measurements
    path = folder / f"{abs(hash(candidate.name))}.npz"
    with record_failure(candidate):
        measurements["memory"] = worker.call("measure_memory")
        measurements["stages"] = worker.call("time_stages", rounds=STAGE_ROUNDS)
        measurements |= worker.call("time_on_gpu", count=GPU_SAMPLES)
        worker.call("save_saliency", path=str(path))
        measurements |= worker.call("describe")
    if not candidate.failure:
        try:
            rates = worker.call("measure_throughput", seconds=seconds_per_setting)
            measurements["throughput"] = rates
        except WorkerError as error:
            candidate.notes.append(f"throughput was not measured: {printable(str(error))}")
    if path.exists():
        with np.load(path) as maps:
            candidate.saliency = dict(maps)
