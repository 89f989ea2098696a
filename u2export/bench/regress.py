"""Whether something became slower than in an earlier report of the same machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from u2export.bench.report import SCHEMA, BenchReport, Row
from u2export.bench.stats import FEWEST, interval
from u2export.errors import InputError, ParityError

LEAST_MS = 0.2  # a slowdown of less is none that anybody could tell
SAME = ("processor", "features", "usable CPUs", "GPUs")  # what makes it the same machine


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
        InputError: the earlier report is of another machine, cannot tell how fast it was, or has
            no row in common.
    """
    comparable(now.machine, then)
    old = {_key(row): row for row in then.rows if row.latency}
    pairs = [(row, old[_key(row)]) for row in now.rows if row.latency and _key(row) in old]
    if not pairs:
        names = ", ".join(row.name for row in old.values()) or "nothing"
        raise InputError(
            f"the baseline measured {names}: no row in common with this report, which must have "
            "the same name, device, threads, precision, size and batch"
        )
    for report in (now, then):
        if len(report.calibration) < FEWEST:
            raise InputError(f"a report has {len(report.calibration)} rounds, too few to compare")
    return [_change(row, before, _speed(now, then, row), most) for row, before in pairs]


def comparable(here: Mapping[str, str], then: BenchReport) -> None:
    """Refuse a report that a new one of this machine could not be compared with.

    Args:
        here: facts of this machine.
        then: the earlier report.

    Raises:
        InputError: it is of another machine, or its fixed piece of work was another.
    """
    for fact in SAME:
        ours, theirs = here.get(fact, "none"), then.machine.get(fact, "none")
        if ours != theirs:
            raise InputError(
                f"the baseline was measured on another machine: {fact}: {theirs}, here {ours}"
            )
    ours, theirs = (one.get("python", "none") for one in (here, then.machine))
    if then.schema_version != SCHEMA or ours != theirs:
        raise InputError(
            f"the baseline's fixed piece of work was another (schema {then.schema_version}, Python "
            f"{theirs}; now schema {SCHEMA}, Python {ours}), so how fast the machine was each time "
            "cannot be compared: measure the baseline again"
        )


def told(change: Change) -> str:
    """How a row's latency changed, in one line."""
    verdict = "slower" if change.slower else "not slower"
    return (
        f"{change.name}: {change.ratio:.3f} times the baseline's latency "
        f"({change.low:.3f} to {change.high:.3f}): {verdict}"
    )


def demand(found: list[Change], most: float) -> None:
    """Refuse changes that are slowdowns.

    Raises:
        ParityError: one is.
    """
    slow = [one for one in found if one.slower]
    if slow:
        told = ", ".join(
            f"{c.name} {c.ratio:.2f} times ({c.low:.2f} to {c.high:.2f})" for c in slow
        )
        raise ParityError(f"slower than the baseline by more than {most:.0%}: {told}")


def missing(now: BenchReport, then: BenchReport) -> list[str]:
    """Names of the rows that the earlier report measured and the new one did not."""
    measured = {_key(row) for row in now.rows if row.latency}
    return [row.name for row in then.rows if row.latency and _key(row) not in measured]


def _key(row: Row) -> tuple[str | int, ...]:
    """What must be the same for two rows to be comparable."""
    return (row.name, row.device, row.threads, row.precision, row.size, row.batch)


def _speed(now: BenchReport, then: BenchReport, row: Row) -> tuple[float, float]:
    """How much longer the fixed work takes now, and the relative half width of that.

    The fixed work is a CPU's, and says nothing of another device.
    """
    if row.device != "cpu":
        return 1.0, 0.0
    return now.calibration_ms / then.calibration_ms, math.hypot(_spread(now), _spread(then))


def _spread(report: BenchReport) -> float:
    medians = [float(np.median(block)) for block in report.calibration]
    return interval(medians, np.median).half_width if medians else 0.0


def _change(row: Row, before: Row, speed: tuple[float, float], most: float) -> Change:
    now, then = row.latency, before.latency
    assert now
    assert then
    expected = then.median * speed[0]
    ratio = now.median / expected
    widths = [(one.high - one.low) / 2 / one.median for one in (now, then)]
    width = math.exp(math.hypot(speed[1], *widths))
    low, high = ratio / width, ratio * width
    slower = low > 1 and ratio > 1 + most and now.median - expected > LEAST_MS
    return Change(row.name, ratio, low, high, slower)
