"""Whether something became slower than in an earlier report of the same machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from u2export.bench.report import BenchReport, Latency
from u2export.bench.stats import interval
from u2export.errors import InputError

LEAST_MS = 0.2  # a slowdown of less is none that anybody could tell
SAME = ("processor", "usable CPUs")  # what makes it the same machine


@dataclass(frozen=True)
class Change:
    """How a row's latency changed, corrected for how fast the machine was each time.

    Attributes:
        name: of the row.
        ratio: of now to then; above 1 is slower.
        low: lower end of the 95 percent interval.
        high: upper end.
        slower: interval, share and milliseconds all say so.
    """

    name: str
    ratio: float
    low: float
    high: float
    slower: bool


def changes(now: BenchReport, then: BenchReport, most: float) -> list[Change]:
    """Compare the rows that both reports measured.

    Args:
        now: the new report.
        then: the earlier one.
        most: the largest slowdown that counts as none, as a share: 0.1 for 10 %.

    Raises:
        InputError: the earlier report is of another machine, or has no row in common.
    """
    for fact in SAME:
        here, there = now.machine.get(fact, "?"), then.machine.get(fact, "?")
        if here != there:
            raise InputError(
                f"the baseline was measured on another machine: its {fact} is {there}, here {here}"
            )
    old = {row.name: row for row in then.rows if row.latency}
    pairs = [
        (row.name, row.latency, old[row.name].latency)
        for row in now.rows
        if row.latency and row.name in old
    ]
    if not pairs:
        names = ", ".join(old) or "nothing"
        raise InputError(f"the baseline measured {names}: no row in common with this report")
    speed, spread = _speed(now, then)
    return [_change(name, a, b, speed, spread, most) for name, a, b in pairs if b]


def _speed(now: BenchReport, then: BenchReport) -> tuple[float, float]:
    """How much longer the fixed work takes now, and the relative half width of that."""
    return now.calibration_ms / then.calibration_ms, math.hypot(_spread(now), _spread(then))


def _spread(report: BenchReport) -> float:
    medians = [float(np.median(block)) for block in report.calibration]
    return interval(medians, np.median).half_width if medians else 0.0


def _change(
    name: str, now: Latency, then: Latency, speed: float, spread: float, most: float
) -> Change:
    expected = then.median * speed
    ratio = now.median / expected
    widths = [(one.high - one.low) / 2 / one.median for one in (now, then)]
    width = math.exp(math.hypot(spread, *widths))
    low, high = ratio / width, ratio * width
    slower = low > 1 and ratio > 1 + most and now.median - expected > LEAST_MS
    return Change(name, ratio, low, high, slower)
