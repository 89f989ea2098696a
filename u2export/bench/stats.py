"""Statistics of measurements that were taken in turn, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2export.bench.report import Latency

# So many samples are needed before a percentile can be told with 99 percent confidence.
# Source: MLPerf Inference, the early-stopping criterion of its LoadGen.
NEEDED = {"p90": (90, 64), "p95": (95, 130), "p99": (99, 662)}
RESAMPLES = 2000
SEED = 1
CONFIDENCE = 0.95
FEWEST = 3  # values of which an interval can be told at all
# A difference below this is none, however narrow the interval: two workers of one file differ by
# so much through where their memory happens to lie (benchmarks/repeatability.py, A/A).
LEAST = 0.02
Blocks = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Interval:
    """A figure and the 95 percent interval around it."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval, by the figure."""
        return (self.high - self.low) / 2 / self.value


def latency(blocks: Blocks) -> Latency:
    """Sum up the samples of one row.

    Args:
        blocks: ms, in the order they were taken; at least one sample.
    """
    samples = np.concatenate([np.asarray(block, float) for block in blocks])
    middle = interval([float(np.median(block)) for block in blocks], np.median)
    told = {
        name: float(np.percentile(samples, percent))
        for name, (percent, needed) in NEEDED.items()
        if len(samples) >= needed
    }
    median = float(np.median(samples))
    low, high = min(middle.low, median), max(middle.high, median)
    if not math.isfinite(high - low):
        low, high = float(samples.min()), float(samples.max())
    kept = tuple(tuple(round(float(t), 4) for t in block) for block in blocks)
    return Latency(median=median, low=low, high=high, blocks=kept, **told)


def ratio(blocks: Blocks, baseline: Blocks, by: float = 1.0) -> Interval:
    """Compare two rows that were measured in turn, round by round.

    What slows the machine down in one round slows both, and leaves their ratio.

    Args:
        blocks: ms; one block a round.
        baseline: of the same rounds.
        by: pictures of a call of the baseline, by those of a call of the row.

    Returns:
        The typical ratio of a round's medians; below 1 is faster than the baseline.
    """
    pairs = zip(blocks, baseline, strict=True)
    ratios = [float(np.median(a) / np.median(b)) for a, b in pairs]
    found = interval(np.log(ratios), _typical)
    return Interval(*(by * float(np.exp(v)) for v in (found.value, found.low, found.high)))


def verdict(found: Interval, least: float = LEAST) -> str:
    """Say `faster` or `slower` where interval and size agree; else `no difference`."""
    if found.low > 1 and found.value > 1 + least:
        return "slower"
    if found.high < 1 and found.value < 1 - least:
        return "faster"
    return "no difference"


def interval(
    values: Sequence[float] | NDArray[np.floating],
    statistic: Callable[..., NDArray[np.floating] | float],
) -> Interval:
    """Bootstrap the interval of a statistic of independent values; endless for fewer than three.

    Few values make the bootstrap too narrow: it takes the spread of those it has, which is
    sqrt((n-1)/n) of what it should be, and the normal distribution's tails instead of Student's.
    Both are made good by widening.

    Args:
        values: one a round.
        statistic: takes an array and `axis`.
    """
    values = np.asarray(values, float)
    count, value = len(values), float(statistic(values, axis=0))
    if count < FEWEST:
        return Interval(value, -math.inf, math.inf)
    picked = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))
    found = np.asarray(statistic(values[picked], axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    wider = np.sqrt(count / (count - 1)) * _student(count - 1) / _NORMAL
    return Interval(value, value - wider * (value - low), value + wider * (high - value))


_NORMAL = 1.959964  # the normal distribution's 97.5 percent point


def _student(freedom: int) -> float:
    """The 97.5 percent point of Student's distribution, to within a percent from 2 on.

    Source:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = _NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _typical(values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """The mean of the middle half: what a few disturbed rounds do not move."""
    count = values.shape[axis]
    cut = count // 4
    ordered = np.sort(values, axis=axis)
    middle = ordered.take(range(cut, count - cut), axis=axis)
    mean: NDArray[np.floating] = middle.mean(axis=axis)
    return mean
