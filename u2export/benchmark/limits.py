"""Limits on the figures of a benchmark, and how far a row violates them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from u2export.benchmark.report import Row
from u2export.errors import InputError

MIN_DIGITS = 3
_MAX_DIGITS = 17  # they distinguish any two numbers
# Divisor for the excess over a limit of zero (MAE 0, IoU 1): a thousandth of the smallest mask
# error that a budget allows.
_ZERO_LIMIT = 1e-7


@dataclass(frozen=True)
class Limits:
    """Limits that a row must keep; None is no limit.

    Attributes:
        max_latency_ms: median time per picture, ms.
        min_iou: mean IoU of the masks and the reference's.
        min_worst_iou: IoU of the worst picture.
        max_mae: mean absolute difference of the masks, whose values are in [0,1].
        max_size_mb: total size of the files, MB of 10^6 bytes.
        max_memory_mb: largest resident memory above Python's own, MB of 10^6 bytes. GPU memory does
            not count.

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
        """Refuse impossible limits."""
        for name, value in asdict(self).items():
            if value is None:
                continue
            if name.endswith("iou") and not 0 <= value <= 1:
                raise InputError(f"{name} must be between 0 and 1, not {value:g}")
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be a finite number of at least 0, not {value:g}")


@dataclass(frozen=True)
class Metric:
    """A figure of a row that can have a limit.

    Attributes:
        name: name in texts.
        limit_name: name of its limit in `Limits`.
        read: reads the figure from a row.
        unit: unit in texts.
        higher_is_better: the limit is a minimum.
        required: a row without this figure cannot win, even without a limit.
    """

    name: str
    limit_name: str
    read: Callable[[Row], float | None]
    unit: str = ""
    higher_is_better: bool = False
    required: bool = False

    @property
    def bound(self) -> str:
        """`at least` or `at most`."""
        return "at least" if self.higher_is_better else "at most"

    def value(self, row: Row) -> float | None:
        """Return the figure of a row; None if it was not measured or is no number."""
        value = self.read(row)
        return None if value is None or math.isnan(value) else value

    def limit(self, limits: Limits) -> float | None:
        """Return its limit; None if there is none."""
        limit: float | None = getattr(limits, self.limit_name)
        return limit

    def cost(self, row: Row) -> float:
        """Return a number that is lower for better rows; infinite without a measurement."""
        value = self.value(row)
        if value is None:
            return math.inf
        return -value if self.higher_is_better else value

    def violates(self, value: float | None, limit: float | None) -> bool:
        """Whether a value violates the limit. A missing value violates every limit."""
        if value is None:
            return self.required or limit is not None
        if limit is None:
            return False
        return value < limit if self.higher_is_better else value > limit

    def with_unit(self, number: str) -> str:
        """Append the unit to a number."""
        return f"{number} {self.unit}".rstrip()


LATENCY = Metric("latency", "max_latency_ms", lambda row: row.picture_ms, "ms", required=True)
IOU = Metric(
    "IoU", "min_iou", lambda row: row.mask.iou if row.mask else None, higher_is_better=True
)
WORST_IOU = Metric(
    "worst IoU",
    "min_worst_iou",
    lambda row: row.mask.worst_iou if row.mask else None,
    higher_is_better=True,
)
MAE = Metric("mask MAE", "max_mae", lambda row: row.mask.mae if row.mask else None)
# No model file is empty: a size of 0 means that the report has none.
SIZE = Metric("size", "max_size_mb", lambda row: row.size_mb or None, "MB")
MEMORY = Metric("memory", "max_memory_mb", lambda row: row.memory_mb, "MB")
METRICS = (LATENCY, IOU, WORST_IOU, MAE, SIZE, MEMORY)


@dataclass(frozen=True)
class Violation:
    """A limit that a row violates.

    Attributes:
        metric: the limited figure.
        value: the row's figure; None if it was not measured.
        limit: None for a required figure without a limit.
    """

    metric: Metric
    value: float | None
    limit: float | None

    @property
    def excess(self) -> float:
        """Excess relative to the limit: 0.25 for 250 ms where 200 ms are allowed.

        It is infinite if the figure was not measured. An IoU counts as the error 1 - IoU: 0.96 is
        twice the error of a limit of 0.98, like twice the MAE.
        """
        if self.value is None or self.limit is None:
            return math.inf
        value, limit = self.value, self.limit
        if self.metric.higher_is_better:
            value, limit = 1 - value, 1 - limit
        return (value - limit) / max(limit, _ZERO_LIMIT)

    @property
    def phrase(self) -> str:
        """The row's figure and the limit."""
        if self.value is None or self.limit is None:
            return f"its {self.metric.name} was not measured"
        value, _ = format_pair(self.value, self.limit)
        figure = f"{self.metric.name} {self.metric.with_unit(value)}"
        return f"{figure}, {self.metric.bound} {self.limit:.10g}"

    @property
    def phrase_with_excess(self) -> str:
        """The phrase, followed by the excess in the metric's unit."""
        if self.value is None or self.limit is None:
            return self.phrase
        excess = self.metric.with_unit(format_short(abs(self.value - self.limit)))
        return f"{self.phrase}: {excess} {'under' if self.metric.higher_is_better else 'over'}"


def find_violations(row: Row, limits: Limits) -> list[Violation]:
    """Return the limits that a row violates, in the order of `METRICS`."""
    figures = [Violation(metric, metric.value(row), metric.limit(limits)) for metric in METRICS]
    return [figure for figure in figures if figure.metric.violates(figure.value, figure.limit)]


def format_short(value: float, digits: int = MIN_DIGITS) -> str:
    """Format a number with this many significant digits, and large numbers without an exponent."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text


def format_pair(value: float, other: float) -> tuple[str, str]:
    """Format two different numbers with as few digits as distinguish them."""
    for digits in range(MIN_DIGITS, _MAX_DIGITS + 1):
        pair = format_short(value, digits), format_short(other, digits)
        if pair[0] != pair[1]:
            return pair
    return format_short(value), format_short(other)
