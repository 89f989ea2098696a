"""Comparison of a benchmark with an earlier one: what became slower?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from u2export.benchmark.report import SCHEMA, BenchmarkReport, Latency, Row
from u2export.benchmark.stats import MIN_VALUES, bootstrap_interval
from u2export.errors import InputError, ParityError

MIN_SLOWDOWN_MS = 0.2  # a smaller slowdown counts as none: nobody notices it
_LARGEST_EXPONENT = 700.0  # of e, that gives a number
MACHINE_FACTS = ("processor", "features", "usable CPUs", "GPUs")  # equal on the same machine


class Verdict(Enum):
    """What a comparison with the baseline says of a row."""

    SLOWER = "slower"
    NOT_SLOWER = "not slower"
    NOT_SETTLED = "not settled"


@dataclass(frozen=True)
class Change:
    """How the latency of a row changed, corrected for the speed of the machine.

    Attributes:
        name: name of the row.
        ratio: new latency divided by the earlier one; above 1 is slower.
        low: lower end of the 95 percent interval.
        high: upper end of that interval.
        verdict: slower where interval, ratio and milliseconds all show a slowdown. Not settled
            where ratio and milliseconds do, and the interval is too wide to tell.
    """

    name: str
    ratio: float
    low: float
    high: float
    verdict: Verdict


def compare_reports(
    report: BenchmarkReport, baseline: BenchmarkReport, max_slowdown: float
) -> list[Change]:
    """Compare the rows that both reports measured.

    Args:
        report: the new report.
        baseline: the earlier report.
        max_slowdown: largest slowdown that is allowed, as a fraction: 0.1 for 10 %.

    Raises:
        InputError: the earlier report is of another machine, has other fixed work, or has no row
            in common. Or a report has too few rounds.
    """
    check_comparable(report.machine, baseline)
    earlier = {_row_key(row): row for row in baseline.rows if row.latency}
    pairs = [
        (row, earlier[_row_key(row)])
        for row in report.rows
        if row.latency and _row_key(row) in earlier
    ]
    if not pairs:
        names = ", ".join(row.name for row in earlier.values()) or "nothing"
        raise InputError(
            f"the baseline measured {names}: no row in common with this report, which must have "
            "the same name, device, threads, precision, size and batch"
        )
    _check_round_counts(report, baseline)
    return [
        _compare_rows(row, before, _machine_slowdown(report, baseline, row.device), max_slowdown)
        for row, before in pairs
    ]


def check_comparable(machine: Mapping[str, str], baseline: BenchmarkReport) -> None:
    """Refuse an earlier report that a new one cannot be compared with.

    Args:
        machine: facts about this machine.
        baseline: the earlier report.

    Raises:
        InputError: it is of another machine, or its fixed work differs.
    """
    for fact in MACHINE_FACTS:
        ours, theirs = machine.get(fact, "none"), baseline.machine.get(fact, "none")
        if ours != theirs:
            raise InputError(
                f"the baseline was measured on another machine: {fact}: {theirs}, here {ours}"
            )
    ours, theirs = (facts.get("python", "none") for facts in (machine, baseline.machine))
    if baseline.schema_version != SCHEMA or ours != theirs:
        raise InputError(
            f"the baseline's fixed piece of work was another (schema {baseline.schema_version}, "
            f"Python {theirs}; now schema {SCHEMA}, Python {ours}), so how fast the machine was "
            "each time cannot be compared: measure the baseline again"
        )


def format_change(change: Change) -> str:
    """Describe how the latency of a row changed, in one line."""
    return (
        f"{change.name}: {change.ratio:.3f} times the baseline's latency "
        f"({change.low:.3f} to {change.high:.3f}): {change.verdict.value}"
    )


def raise_if_slower(changes: list[Change], max_slowdown: float) -> None:
    """Refuse slowdowns, and rows that look slower in too wide an interval.

    Raises:
        ParityError: a row became slower, or nobody can tell whether it did.
    """
    limit = f"slower than the baseline by more than {max_slowdown:.0%}"
    if slower := _describe_rows(changes, Verdict.SLOWER):
        raise ParityError(f"{limit}: {slower}")
    if unsettled := _describe_rows(changes, Verdict.NOT_SETTLED):
        raise ParityError(
            f"it is not settled what is {limit}: {unsettled}; "
            "measure longer with --duration, or on a quieter machine"
        )


def _describe_rows(changes: list[Change], verdict: Verdict) -> str:
    """Name the rows of one verdict with their ratios."""
    return ", ".join(
        f"{change.name} {change.ratio:.2f} times ({change.low:.2f} to {change.high:.2f})"
        for change in changes
        if change.verdict is verdict
    )


def missing_rows(report: BenchmarkReport, baseline: BenchmarkReport) -> list[str]:
    """Return names of rows that the earlier report measured and the new one did not."""
    measured = {_row_key(row) for row in report.rows if row.latency}
    return [row.name for row in baseline.rows if row.latency and _row_key(row) not in measured]


def _row_key(row: Row) -> tuple[str | int, ...]:
    """Return what must be equal in two comparable rows."""
    return (row.name, row.device, row.threads, row.precision, row.size, row.batch)


def _check_round_counts(*reports: BenchmarkReport) -> None:
    for report in reports:
        if len(report.calibration) < MIN_VALUES:
            raise InputError(f"a report has {len(report.calibration)} rounds, too few to compare")


def _machine_slowdown(
    report: BenchmarkReport, baseline: BenchmarkReport, device: str
) -> tuple[float, float]:
    """Return how much slower the machine is now, and the relative half width of that ratio.

    The fixed work runs on the CPU. It says nothing about other devices.
    """
    if device != "cpu":
        return 1.0, 0.0
    half_width = math.hypot(_fixed_work_half_width(report), _fixed_work_half_width(baseline))
    return report.calibration_ms / baseline.calibration_ms, half_width


def _fixed_work_half_width(report: BenchmarkReport) -> float:
    medians = [float(np.median(block)) for block in report.calibration]
    return bootstrap_interval(medians, np.median).half_width if medians else 0.0


def _compare_rows(
    row: Row, before: Row, machine_slowdown: tuple[float, float], max_slowdown: float
) -> Change:
    current, earlier = row.latency, before.latency
    assert current
    assert earlier
    expected_ms = earlier.median * machine_slowdown[0]
    ratio = current.median / expected_ms
    half_widths = [_log_half_width(latency) for latency in (current, earlier)]
    exponent = math.hypot(machine_slowdown[1], *half_widths)
    factor = math.exp(min(exponent, _LARGEST_EXPONENT))
    low, high = ratio / factor, ratio * factor
    increase_ms = current.median - expected_ms
    verdict = Verdict.NOT_SLOWER
    if ratio > 1 + max_slowdown and increase_ms > MIN_SLOWDOWN_MS:
        verdict = Verdict.SLOWER if low > 1 else Verdict.NOT_SETTLED
    return Change(row.name, ratio, low, high, verdict)


def _log_half_width(latency: Latency) -> float:
    """Half the interval's width on a scale of logarithms, where both sides are alike."""
    return math.log(latency.high / latency.low) / 2 if latency.low else math.inf
