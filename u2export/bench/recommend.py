"""Which of the measured files to take: the cheapest whose masks are right and that keeps limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from u2export.bench.report import BenchReport, Row
from u2export.bench.stats import FEWEST, ratio, verdict
from u2export.errors import InputError, ParityError
from u2export.parity.report import Fact

_WIDTH = 118
_DIGITS = range(3, 18)  # as few as tell two numbers apart; 17 tell any two apart
# Stands in for a limit of nothing (MAE 0, IoU 1), by which no excess can be divided; a thousandth
# of the smallest mask error that a budget allows.
_NOTHING = 1e-7
_EQUAL = "as fast within the noise"


@dataclass(frozen=True)
class Limits:
    """What a row must keep; None is no limit.

    Attributes:
        max_latency_ms: median time of a picture.
        min_iou: of the masks with the reference's, mean over the pictures.
        min_worst_iou: of the worst picture.
        max_mae: mean absolute difference of the masks, of a range of 1.
        max_size_mb: of all its files together, MB of 10^6 bytes.
        max_memory_mb: largest resident memory above Python's own, MB of 10^6 bytes; a GPU's memory
            is not counted.

    Raises:
        InputError: a limit is negative, not finite, or an IoU above 1.
    """

    max_latency_ms: float | None = None
    min_iou: float | None = None
    min_worst_iou: float | None = None
    max_mae: float | None = None
    max_size_mb: float | None = None
    max_memory_mb: float | None = None

    def __post_init__(self) -> None:
        """Refuse what nobody can mean."""
        for name, value in asdict(self).items():
            if value is None:
                continue
            if name.endswith("iou") and not 0 <= value <= 1:
                raise InputError(f"{name} must be between 0 and 1, not {value:g}")
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be a finite number of at least 0, not {value:g}")


class Lost(Fact):
    """A row that was not chosen.

    Attributes:
        name: of the row.
        why: phrases, at least one.
    """

    name: str
    why: tuple[str, ...]


class Recommendation(Fact):
    """What to take, and why nothing else.

    Attributes:
        winner: name of the row; empty where nothing fits.
        front: names of the rows with the right mask than which no other such row is better in
            latency, mask error, size or memory without being worse in another; fastest first.
        lost: every row but the winner, in the report's order.
        nearest: where nothing fits, the row with the right mask that misses the limits least;
            empty where there is none, or something fits.
        distance: by how much the nearest misses each limit, as phrases.
    """

    winner: str = ""
    front: tuple[str, ...] = ()
    lost: tuple[Lost, ...] = ()
    nearest: str = ""
    distance: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Figure:
    """One of a row's figures that can be limited.

    Attributes:
        name: for people.
        limit: the name of its limit in `Limits`.
        read: takes it from a row.
        unit: for people.
        least: its limit is a least one, and more is better.
        needed: a row without it cannot win even where it is not limited.
    """

    name: str
    limit: str
    read: Callable[[Row], float | None]
    unit: str = ""
    least: bool = False
    needed: bool = False

    @property
    def bound(self) -> str:
        """`at least` or `at most`."""
        return "at least" if self.least else "at most"

    def of(self, row: Row) -> float | None:
        """A row's; None where it was not measured or is no number."""
        value = self.read(row)
        return None if value is None or math.isnan(value) else value

    def limited(self, limits: Limits) -> float | None:
        """Its limit; None where there is none."""
        limit: float | None = getattr(limits, self.limit)
        return limit

    def rank(self, row: Row) -> float:
        """Lower is better, and what was not measured is worst."""
        value = self.of(row)
        if value is None:
            return math.inf
        return -value if self.least else value

    def missed(self, value: float | None, limit: float | None) -> bool:
        """A value is not within the limit; a value that is not there is never within one."""
        if value is None:
            return self.needed or limit is not None
        if limit is None:
            return False
        return value < limit if self.least else value > limit

    def shown(self, number: str) -> str:
        """A number with the unit."""
        return f"{number} {self.unit}".rstrip()


_LATENCY = _Figure("latency", "max_latency_ms", lambda row: row.per_picture, "ms", needed=True)
_IOU = _Figure("IoU", "min_iou", lambda row: row.mask.iou if row.mask else None, least=True)
_WORST = _Figure(
    "worst IoU", "min_worst_iou", lambda row: row.mask.worst_iou if row.mask else None, least=True
)
_MAE = _Figure("mask MAE", "max_mae", lambda row: row.mask.mae if row.mask else None)
# No model file is empty: a size of 0 is what a report says that was given none.
_SIZE = _Figure("size", "max_size_mb", lambda row: row.size_mb or None, "MB")
_MEMORY = _Figure("memory", "max_memory_mb", lambda row: row.memory_mb, "MB")
_FIGURES = (_LATENCY, _IOU, _WORST, _MAE, _SIZE, _MEMORY)
# What decides between rows that are equally fast, first things first.
_DECIDERS = ((_MEMORY, "larger in memory"), (_SIZE, "larger as a file"), (_IOU, "lower in IoU"))


@dataclass(frozen=True)
class _Miss:
    """A limit that a row does not keep; without a value where that was not measured."""

    figure: _Figure
    value: float | None
    limit: float | None

    @property
    def excess(self) -> float:
        """By the limit: 0.25 for 250 ms where 200 are allowed. Infinite for what is not known.

        An IoU counts by its distance from 1, as the mask error it is: 0.96 where 0.98 is asked is
        twice the error, as twice the MAE would be.
        """
        if self.value is None or self.limit is None:
            return math.inf
        value, limit = self.value, self.limit
        if self.figure.least:
            value, limit = 1 - value, 1 - limit
        return (value - limit) / max(limit, _NOTHING)

    @property
    def phrase(self) -> str:
        """What the row has and what it should have."""
        if self.value is None or self.limit is None:
            return f"its {self.figure.name} was not measured"
        value, _ = _apart(self.value, self.limit)
        have = f"{self.figure.name} {self.figure.shown(value)}"
        return f"{have}, {self.figure.bound} {self.limit:.10g}"

    @property
    def distance(self) -> str:
        """The phrase, and by how much the limit is missed."""
        if self.value is None or self.limit is None:
            return self.phrase
        by = self.figure.shown(_short(abs(self.value - self.limit)))
        return f"{self.phrase}: {by} {'under' if self.figure.least else 'over'}"


def recommend(report: BenchReport, limits: Limits) -> Recommendation:
    """Choose the row with the lowest latency a picture of those that are right and keep limits.

    Rows that their turns cannot tell from the fastest one are equally fast: of them the one with
    the smaller memory is chosen, then with the smaller files, then with the higher IoU, then by
    name. A row whose mask is wrong or was not compared is never chosen.
    """
    fitting = [row for row in report.rows if row.right and not _misses(row, limits)]
    equal = tied(fitting)
    winner = min(equal, key=_thrift, default=None)
    near = None if winner else _nearest(report.rows, limits)
    losers = [row for row in report.rows if row is not winner]
    return Recommendation(
        winner=winner.name if winner else "",
        front=_front([row for row in report.rows if row.right]),
        lost=tuple(Lost(name=row.name, why=_why(row, winner, equal, limits)) for row in losers),
        nearest=near.name if near else "",
        distance=tuple(miss.distance for miss in _misses(near, limits)) if near else (),
    )


def demand(found: Recommendation) -> None:
    """Insist that something fits.

    Raises:
        ParityError: nothing does; the sentence names the nearest and what it misses.
    """
    if found.winner:
        return
    if not found.nearest:
        raise ParityError("nothing fits: there is no row with the right mask")
    raise ParityError(f"nothing fits; nearest is {found.nearest}: {'; '.join(found.distance)}")


def _misses(row: Row, limits: Limits) -> list[_Miss]:
    found = [_Miss(figure, figure.of(row), figure.limited(limits)) for figure in _FIGURES]
    return [one for one in found if one.figure.missed(one.value, one.limit)]


def _interval(row: Row) -> tuple[float, float]:
    """The 95 percent interval of the latency of a picture, ms."""
    if row.latency is None:
        return math.inf, math.inf
    return row.latency.low / row.batch, row.latency.high / row.batch


def tied(rows: Sequence[Row]) -> list[Row]:
    """The fastest first, then those that cannot be told from it."""
    ordered = sorted(rows, key=lambda row: (_LATENCY.rank(row), row.name))
    if not ordered:
        return []
    fastest, *others = ordered
    return [fastest, *(row for row in others if _equal(row, fastest))]


def _equal(row: Row, fastest: Row) -> bool:
    """Whether a row cannot be told from the fastest: round by round where both took turns.

    The interval of a latency holds the machine's drift, which a ratio of turns does not.
    """
    a, b = (one.latency.blocks if one.latency else () for one in (row, fastest))
    if len(a) == len(b) and len(a) >= FEWEST:
        return verdict(ratio(a, b, fastest.batch / row.batch)) == "no difference"
    return _interval(row)[0] <= _interval(fastest)[1]


def _thrift(row: Row) -> tuple[float | str, ...]:
    """Sorts rows that are equally fast, the one to take first."""
    return (*(figure.rank(row) for figure, _ in _DECIDERS), row.name)


def _nearest(rows: Sequence[Row], limits: Limits) -> Row | None:
    """The row with the right mask that misses limits least; None where no mask is right."""

    def far(row: Row) -> tuple[float, float, float, str]:
        excesses = [miss.excess for miss in _misses(row, limits)]
        known = [excess for excess in excesses if math.isfinite(excess)]
        return len(excesses) - len(known), sum(known), _LATENCY.rank(row), row.name

    return min((row for row in rows if row.right), key=far, default=None)


def _front(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the rows that no other dominates, fastest first."""
    costs = {row.name: _costs(row) for row in rows}
    kept = [
        name
        for name, mine in costs.items()
        if not any(_dominates(other, mine) for other in costs.values())
    ]
    return tuple(sorted(kept, key=lambda name: (costs[name], name)))


def _costs(row: Row) -> tuple[tuple[float, ...], ...]:
    """What is better the lower it is. The mask's error is one thing: MAE tells equal IoUs apart."""
    mask = (_IOU.rank(row), _MAE.rank(row))
    return (_LATENCY.rank(row),), mask, (_SIZE.rank(row),), (_MEMORY.rank(row),)


def _dominates(one: tuple[tuple[float, ...], ...], other: tuple[tuple[float, ...], ...]) -> bool:
    """Nowhere worse and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _why(row: Row, winner: Row | None, equal: Sequence[Row], limits: Limits) -> tuple[str, ...]:
    """Why a row was not chosen; `equal` has the fastest that fits first."""
    if row.failed:
        return (f"failed: {row.failed}",)
    against = (*_wrong(row), *(miss.phrase for miss in _misses(row, limits)))
    if against or winner is None:
        return against
    return (_beaten(row, winner) if row in equal else _slower(row, winner, equal[0]),)


def _wrong(row: Row) -> tuple[str, ...]:
    """What is against its mask; nothing where that is right."""
    if row.mask is None:
        return (_because("not compared with the reference", row.unjudged),)
    if not row.mask.passed:
        return (_because("its mask is wrong", "; ".join(row.mask.reasons)),)
    return ()


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what


def _slower(row: Row, winner: Row, fastest: Row) -> str:
    # Who wins a tie need not be faster than every row outside of it: some lost to the fastest.
    clear = fastest is winner or _interval(row)[0] > _interval(winner)[1]
    other, who = (winner, "the winner") if clear else (fastest, f"the fastest, {fastest.name}")
    mine, best = _apart(_LATENCY.rank(row), _LATENCY.rank(other))
    return f"slower than {who}: {_LATENCY.shown(mine)} against {best}"


def _beaten(row: Row, winner: Row) -> str:
    """What decided between two rows that are equally fast."""
    for figure, how in _DECIDERS:
        mine, best = figure.of(row), figure.of(winner)
        if mine == best:
            continue
        if mine is None or best is None:
            return f"{_EQUAL}, and its {figure.name} was not measured"
        own, other = _apart(mine, best)
        return f"{_EQUAL} and {how}: {figure.shown(own)} against {other}"
    return f"{_EQUAL}, equal in all else and later by name"


def _short(value: float, digits: int = _DIGITS[0]) -> str:
    """At least so many digits that count, and no power of ten for large numbers."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text


def _apart(value: float, other: float) -> tuple[str, str]:
    """Two different numbers in as few digits as show which one is larger."""
    shown = ((_short(value, digits), _short(other, digits)) for digits in _DIGITS)
    return next((pair for pair in shown if pair[0] != pair[1]), (_short(value), _short(other)))


def text(report: BenchReport, found: Recommendation, limits: Limits) -> str:
    """For people at a terminal: what to take, the Pareto front, and why the others lost.

    Args:
        report: what was measured.
        found: what `recommend` says of this report under these limits.
        limits: what was asked.
    """
    lines = _chosen(report, found, limits) if found.winner else _none(found, limits)
    if not report.stable:
        lines.append("the measurement was less steady than it should be: measure again")
    if found.front:
        lines += ["Pareto front, the rows that no other beats in everything:"]
        lines.append(_table([report.row(name) for name in found.front], found.winner, limits))
    if found.lost:
        lines += ["why not the others:" if found.winner else "why none:"]
    return "\n".join([*lines, *(f"  {one.name}: {'; '.join(one.why)}" for one in found.lost)])


def _chosen(report: BenchReport, found: Recommendation, limits: Limits) -> list[str]:
    row = report.row(found.winner)
    figures = [(figure, figure.of(row)) for figure in _FIGURES]
    told = [f"{f.name} {f.shown(_exact(f, value))}" for f, value in figures if value is not None]
    return [f"take {row.name}: {_asked(limits)}", f"  {', '.join(told)}"]


def _none(found: Recommendation, limits: Limits) -> list[str]:
    lines = [f"nothing fits: {_asked(limits)}"]
    if not found.nearest:
        return [*lines, "there is no row with the right mask"]
    lines.append(f"nearest is {found.nearest}, which misses:")
    return lines + [f"  {phrase}" for phrase in found.distance]


def _asked(limits: Limits) -> str:
    """The limits in words."""
    pairs = [(figure, figure.limited(limits)) for figure in _FIGURES]
    asked = [f"{f.name} {f.bound} {f.shown(f'{v:.10g}')}" for f, v in pairs if v is not None]
    return ", ".join(["the right mask", *asked])


def _table(rows: Sequence[Row], winner: str, limits: Limits) -> str:
    # A file's name may have brackets or colons in it, which are not meant as markup.
    console = Console(width=_WIDTH, color_system=None, markup=False, emoji=False)
    shown = Table(
        "candidate", "verdict", "ms a picture", "95 %", "IoU", "mask MAE", "file MB", "memory MB"
    )
    for row in rows:
        verdict = "does not fit" if _misses(row, limits) else "fits"
        shown.add_row(row.name, "winner" if row.name == winner else verdict, *_cells(row))
    with console.capture() as capture:
        console.print(shown)
    return capture.get().rstrip("\n")


def _cells(row: Row) -> list[str]:
    low, high = (_short(end) for end in _interval(row))
    spread = f"{low} to {high}" if row.latency else ""
    latency, *others = (_exact(f, f.of(row)) for f in (_LATENCY, _IOU, _MAE, _SIZE, _MEMORY))
    return [latency, spread, *others]


def _exact(figure: _Figure, value: float | None) -> str:
    """A figure without its unit; IoUs, which are all near 1, with four decimals."""
    if value is None:
        return ""
    return f"{value:.4f}" if figure.least else _short(value)
