"""Recommendation from a benchmark: the fastest correct row that keeps all limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from u2export.benchmark.limits import (
    IOU,
    LATENCY,
    MAE,
    MEMORY,
    SIZE,
    Limits,
    find_violations,
    format_pair,
)
from u2export.benchmark.report import BenchmarkReport, Row
from u2export.benchmark.stats import MIN_VALUES, latency_ratio, verdict
from u2export.errors import ParityError
from u2export.reports.model import FrozenModel

# Metrics that decide between equally fast rows, in this order, and how the loser is described.
_TIE_BREAKERS = ((MEMORY, "larger in memory"), (SIZE, "larger as a file"), (IOU, "lower in IoU"))
_EQUALLY_FAST = "as fast within the noise"
Costs = tuple[tuple[float, ...], ...]


class Rejected(FrozenModel):
    """A row that was not chosen.

    Attributes:
        name: name of the row.
        why: reasons as phrases, at least one.
    """

    name: str
    why: tuple[str, ...]


class Recommendation(FrozenModel):
    """The recommended row, and why the others lost.

    Attributes:
        winner: name of the row; empty if nothing fits.
        front: names of the rows on the Pareto front, fastest first. No other correct row is better
            in latency, mask error, size or memory without being worse in another.
        lost: every row except the winner, in the report's order.
        nearest: if nothing fits, the correct row with the smallest excess over the limits. It is
            empty if something fits, and without a correct row.
        distance: phrases that say by how much the nearest row violates each limit.
    """

    winner: str = ""
    front: tuple[str, ...] = ()
    lost: tuple[Rejected, ...] = ()
    nearest: str = ""
    distance: tuple[str, ...] = ()


def recommend(report: BenchmarkReport, limits: Limits) -> Recommendation:
    """Choose the correct row with the lowest latency per picture that keeps the limits.

    Rows that cannot be distinguished from the fastest one are equally fast. Among them wins the
    smallest memory, then the smallest files, then the highest IoU, then the name. A row whose mask
    is wrong or was not compared never wins.
    """
    eligible = [row for row in report.rows if row.is_correct and not find_violations(row, limits)]
    fastest = equally_fast(eligible)
    winner = min(fastest, key=_tie_order, default=None)
    nearest = None if winner else _find_nearest(report.rows, limits)
    losers = [row for row in report.rows if row is not winner]
    violations = find_violations(nearest, limits) if nearest else []
    return Recommendation(
        winner=winner.name if winner else "",
        front=_pareto_front([row for row in report.rows if row.is_correct]),
        lost=tuple(
            Rejected(name=row.name, why=_rejection_reasons(row, winner, fastest, limits))
            for row in losers
        ),
        nearest=nearest.name if nearest else "",
        distance=tuple(violation.phrase_with_excess for violation in violations),
    )


def raise_if_no_winner(recommendation: Recommendation) -> None:
    """Refuse a recommendation without a winner.

    Raises:
        ParityError: nothing fits. The message names the nearest row and what it violates.
    """
    if recommendation.winner:
        return
    if not recommendation.nearest:
        raise ParityError("nothing fits: there is no row with the right mask")
    distance = "; ".join(recommendation.distance)
    raise ParityError(f"nothing fits; nearest is {recommendation.nearest}: {distance}")


def equally_fast(rows: Sequence[Row]) -> list[Row]:
    """Return the fastest row, followed by those that cannot be distinguished from it."""
    ordered = sorted(rows, key=lambda row: (LATENCY.cost(row), row.name))
    if not ordered:
        return []
    fastest, *others = ordered
    return [fastest, *(row for row in others if _is_equally_fast(row, fastest))]


def _is_equally_fast(row: Row, fastest: Row) -> bool:
    """Whether a row cannot be distinguished from the fastest.

    Rows of the same rounds are compared round by round. The interval of a latency contains the
    drift of the machine, and a ratio per round does not.
    """
    blocks = row.latency.blocks if row.latency else ()
    fastest_blocks = fastest.latency.blocks if fastest.latency else ()
    if len(blocks) == len(fastest_blocks) and len(blocks) >= MIN_VALUES:
        ratio = latency_ratio(blocks, fastest_blocks, fastest.batch / row.batch)
        return verdict(ratio) == "no difference"
    return latency_interval(row)[0] <= latency_interval(fastest)[1]


def latency_interval(row: Row) -> tuple[float, float]:
    """Return the 95 percent interval of the latency per picture, ms; infinite without one."""
    if row.latency is None:
        return math.inf, math.inf
    return row.latency.low / row.batch, row.latency.high / row.batch


def _tie_order(row: Row) -> tuple[float | str, ...]:
    """Return a key that sorts equally fast rows, the best first."""
    return (*(metric.cost(row) for metric, _ in _TIE_BREAKERS), row.name)


def _find_nearest(rows: Sequence[Row], limits: Limits) -> Row | None:
    """Return the correct row with the smallest excess over the limits; None without one."""

    def distance(row: Row) -> tuple[float, float, float, str]:
        excesses = [violation.excess for violation in find_violations(row, limits)]
        known = [excess for excess in excesses if math.isfinite(excess)]
        return len(excesses) - len(known), sum(known), LATENCY.cost(row), row.name

    return min((row for row in rows if row.is_correct), key=distance, default=None)


def _pareto_front(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return names of the rows that no other dominates, fastest first."""
    costs = {row.name: _costs(row) for row in rows}
    front = [
        name
        for name, own in costs.items()
        if not any(_dominates(other, own) for other in costs.values())
    ]
    return tuple(sorted(front, key=lambda name: (costs[name], name)))


def _costs(row: Row) -> Costs:
    """Return four costs, lower is better. The mask counts once: MAE decides between equal IoUs."""
    mask = (IOU.cost(row), MAE.cost(row))
    return (LATENCY.cost(row),), mask, (SIZE.cost(row),), (MEMORY.cost(row),)


def _dominates(costs: Costs, others: Costs) -> bool:
    """Whether no cost is higher and at least one is lower."""
    return costs != others and all(a <= b for a, b in zip(costs, others, strict=True))


def _rejection_reasons(
    row: Row, winner: Row | None, fastest: Sequence[Row], limits: Limits
) -> tuple[str, ...]:
    """Say why a row was not chosen.

    Args:
        row: the row.
        winner: the chosen row, if any.
        fastest: the equally fast rows that fit, the fastest first.
        limits: limits on the figures.
    """
    if row.failed:
        return (f"failed: {row.failed}",)
    violations = find_violations(row, limits)
    reasons = (*_mask_problems(row), *(violation.phrase for violation in violations))
    if reasons or winner is None:
        return reasons
    if row in fastest:
        return (_tie_reason(row, winner),)
    return (_slower_reason(row, winner, fastest[0]),)


def _mask_problems(row: Row) -> tuple[str, ...]:
    """Say why the mask is not correct; empty if it is."""
    if row.mask is None:
        return (_with_reason("not compared with the reference", row.unjudged),)
    if not row.mask.is_correct:
        reasons = row.mask.reasons or (f"IoU {row.mask.iou:g}",)
        return (_with_reason("its mask is wrong", "; ".join(reasons)),)
    return ()


def _with_reason(problem: str, reason: str) -> str:
    return f"{problem}: {reason}" if reason else problem


def _slower_reason(row: Row, winner: Row, fastest: Row) -> str:
    # The winner of a tie may be slower than a row that lost only to the fastest.
    lost_to_winner = fastest is winner or latency_interval(row)[0] > latency_interval(winner)[1]
    other = winner if lost_to_winner else fastest
    title = "the winner" if lost_to_winner else f"the fastest, {fastest.name}"
    own_ms, other_ms = format_pair(LATENCY.cost(row), LATENCY.cost(other))
    return f"slower than {title}: {LATENCY.with_unit(own_ms)} against {other_ms}"


def _tie_reason(row: Row, winner: Row) -> str:
    """Say what decided between two equally fast rows."""
    for metric, description in _TIE_BREAKERS:
        value, best = metric.value(row), metric.value(winner)
        if value == best:
            continue
        if value is None or best is None:
            return f"{_EQUALLY_FAST}, and its {metric.name} was not measured"
        own, other = format_pair(value, best)
        return f"{_EQUALLY_FAST} and {description}: {metric.with_unit(own)} against {other}"
    return f"{_EQUALLY_FAST}, equal in all else and later by name"
