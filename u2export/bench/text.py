"""A benchmark for people at a terminal, and the words that every form of it shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from rich.console import Console, JustifyMethod
from rich.table import Column, Table
from rich.text import Text

from u2export.bench.recommend import tied
from u2export.bench.report import BenchReport, Ratio, Row
from u2export.parity.words import printable

State = Literal["right", "wrong", "unjudged", "failed"]
HEADS = (
    "name",
    "ms a picture",
    "to the baseline",
    "pictures/s",
    "memory, MB",
    "files, MB",
    "worst IoU",
    "verdict",
    "what ran",
)
_WIDTH = 118
_TEXTS = (0, 7, 8)  # columns of words; the others hold numbers, which stand to the right
# Characters of columns that hold figures: no interval is broken, and names get the room.
_NARROW = {2: 13, 3: 8, 4: 7, 5: 6, 6: 6}
_NAME = 24  # and of the first at the most
_PERCENTILES = ("p90", "p95", "p99")
_BIG = 999.5  # from here on three digits would be written with an exponent


def table(report: BenchReport) -> str:
    """A row a measurement, the winner, and what else should be known."""
    rows = [cells(row, report) for row in report.rows]
    name = min(max((len(row[0]) for row in rows), default=0), _NAME) or None
    shown = Table(*_columns({0: name, **_NARROW}), padding=(0, 1, 0, 0))
    for row in rows:
        # As `Text`, since rich would read brackets in a name as its markup.
        shown.add_row(*map(Text, row))
    console = Console(width=_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    drawn = capture.get().rstrip("\n")
    return "\n".join([f"{about(report)}:", drawn, headline(report), *told(report)])


def _columns(widths: Mapping[int, int | None]) -> Iterator[Column]:
    """The table's columns; rich shares the room among those that have no width."""
    for place, head in enumerate(HEADS):
        side: JustifyMethod = "left" if place in _TEXTS else "right"
        yield Column(head, overflow="fold", justify=side, width=widths.get(place))


def about(report: BenchReport) -> str:
    """What was compared with what, in one line."""
    count = len(report.pictures)
    pictures = f"{count} picture" if count == 1 else f"{count} pictures"
    return (
        f"Masks against {line(report.reference)} on {pictures}; "
        f"speed against {line(report.baseline)}"
    )


def cells(row: Row, report: BenchReport) -> list[str]:
    """A row's text under each of `HEADS`; empty where there is no figure."""
    found = [row.throughput.pictures if row.throughput else None, row.memory_mb]
    return [
        line(row.name),
        latency(row),
        ratio(row, report),
        *map(number, found),
        number(row.size_mb or None),  # a file of no bytes was not told
        iou(row.mask.worst_iou if row.mask else None),
        verdict(row),
        line(row.ran),
    ]


def headline(report: BenchReport) -> str:
    """The fastest of the rows whose masks are right, with those as fast, or that there is none."""
    best = report.winner
    if best is None:
        return "no row was measured and has the right mask: there is no winner"
    name, time = line(best.name), number(best.per_picture)
    equal = tied([row for row in report.rows if row.right and row.latency])
    others = [line(row.name) for row in equal if row is not best]
    as_fast = f"; as fast within the noise: {', '.join(others)}" if others else ""
    return f"fastest with the right mask: {name}, {time} ms a picture{as_fast}"


def told(report: BenchReport) -> list[str]:
    """What else should be known, a sentence each: wrong masks first, notes last."""
    lines = [f"{line(row.name)} has the WRONG MASK{_why(row)}" for row in of("wrong", report)]
    lines += [f"{line(row.name)} failed: {reason(row)}" for row in of("failed", report)]
    lines += list(_tails(report))
    if not report.stable:
        lines.append(
            "The intervals are wider than they should be: the machine was not quiet. "
            "Measure again before you rely on small differences."
        )
    lines += [f"{line(row.name)}: {line(note)}" for row in report.rows for note in row.notes]
    return lines + [line(note) for note in report.notes]


# --- a row in words ------------------------------------------------------------------------------


def state(row: Row) -> State:
    """What became of a row."""
    if row.failed:
        return "failed"
    if row.mask is None:
        return "unjudged"
    return "right" if row.right else "wrong"


def of(wanted: State, report: BenchReport) -> list[Row]:
    """The rows of which that became, in the report's order."""
    return [row for row in report.rows if state(row) == wanted]


def verdict(row: Row) -> str:
    """What became of a row, in words."""
    found = state(row)
    why = reason(row)
    words = {"right": "right", "wrong": "WRONG MASK", "unjudged": "not compared"}.get(found, found)
    return f"{words}: {why}" if why and found in ("unjudged", "failed") else words


def reason(row: Row) -> str:
    """Why a row is not right, as a phrase; empty where it is or where no reason was given."""
    if row.failed:
        return line(row.failed)
    return line("; ".join(row.mask.reasons) if row.mask else row.unjudged)


def span(row: Row) -> tuple[float, float, float] | None:
    """Median time of a picture and its 95 percent interval, ms: median, lower end, upper end."""
    found = row.latency
    if found is None or row.failed:
        return None
    return found.median / row.batch, found.low / row.batch, found.high / row.batch


def latency(row: Row) -> str:
    """Time of a picture with its interval, ms."""
    found = span(row)
    return _ranged(*found) if found else ""


def ratio(row: Row, report: BenchReport) -> str:
    """A row's time by the baseline's, with its interval."""
    if row.name == report.baseline:
        return "baseline" if span(row) else ""
    found = against(row, report)
    return f"{_ranged(found.ratio, found.low, found.high)} {line(found.verdict)}" if found else ""


def against(row: Row, report: BenchReport) -> Ratio | None:
    """The row's ratio to the baseline; None where there is none."""
    return next((ratio for ratio in report.ratios if ratio.name == row.name), None)


def _ranged(middle: float, low: float, high: float) -> str:
    return f"{number(middle)} ({number(low)}–{number(high)})"


def _why(row: Row) -> str:
    worst = row.mask.worst_picture if row.mask else ""
    why = f": {reason(row)}" if reason(row) else ""
    return f"{why}; worst on '{line(worst)}'" if worst else why


def _tails(report: BenchReport) -> Iterator[str]:
    """What the slowest calls took, of those rows that have enough samples to tell."""
    for row in report.rows:
        known = [(name, getattr(row.latency, name, None)) for name in _PERCENTILES]
        told = [f"{name} {number(value)} ms" for name, value in known if value is not None]
        if told:
            call = "picture" if row.batch == 1 else f"call of {row.batch} pictures"
            yield f"{line(row.name)}: {', '.join(told)} a {call}"


# --- figures and names ---------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three digits, which is more than a benchmark can tell; empty where there is no figure."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= _BIG else f"{value:.3g}"


def iou(value: float | None) -> str:
    """An intersection over union; empty where there is none."""
    return "" if value is None else f"{value:.4f}"


def line(text: str) -> str:
    """The text in one line, without anything that would steer a terminal or cannot be written."""
    return "".join(c if c.isprintable() else "?" for c in printable(" ".join(text.split())))
