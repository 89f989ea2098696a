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
# A turn in which its threads waited for a core for more than this share of its time was not theirs
# alone; undisturbed ones wait for 0 to 1 percent.
WAITED = 0.05
LEAST_CALM = 0.2  # of all rounds: fewer undisturbed ones than that are no picture of the machine
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


def latency(blocks: Blocks, disturbed: Blocks = ()) -> Latency:
    """Sum up the samples of one row.

    Args:
        blocks: ms, in the order they were taken; at least one sample.
        disturbed: those of the rounds that count for nothing; they are only kept.
    """
    samples = np.concatenate([np.asarray(block, float) for block in blocks])
    middle = _multiplied(interval(np.log([np.median(block) for block in blocks]), np.median))
    told = {
        name: float(np.percentile(samples, percent))
        for name, (percent, needed) in NEEDED.items()
        if len(samples) >= needed
    }
    median = float(np.median(samples))
    low, high = min(middle.low, median), max(middle.high, median)
    if not math.isfinite(high - low):
        low, high = float(samples.min()), float(samples.max())
    return Latency(
        median=median, low=low, high=high, blocks=_kept(blocks), disturbed=_kept(disturbed), **told
    )


def _kept(blocks: Blocks) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(t), 4) for t in block) for block in blocks)


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
    return _multiplied(interval(np.log(ratios), _typical), by)


def _multiplied(found: Interval, by: float = 1.0) -> Interval:
    """Undo the logarithm, in which an interval was taken so that it cannot reach below 0."""
    return Interval(*(by * float(np.exp(v)) for v in (found.value, found.low, found.high)))


def calm(waited: Sequence[Sequence[float]]) -> list[int]:
    """Places of the rounds in which no other process took the cores.

    Two rows do not suffer alike from that, so what it does to them says nothing of either.

    Args:
        waited: of each row, of each round: the share of its time that a thread waited for a core.

    Returns:
        All places, where the undisturbed ones are too few.
    """
    rounds, left = (list(range(len(waited[0]))) if waited else []), set(disturbed(waited))
    found = [place for place in rounds if place not in left]
    return found if len(found) >= max(FEWEST, LEAST_CALM * len(rounds)) else rounds


def disturbed(waited: Sequence[Sequence[float]]) -> list[int]:
    """Places of the rounds in which a row's threads waited for a core; takes what `calm` takes."""
    return [place for place, row in enumerate(zip(*waited, strict=True)) if max(row) > WAITED]


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
    *,
    independent: bool = False,
) -> Interval:
    """Bootstrap the interval of a statistic; endless for fewer than three values.

    Few values make the bootstrap too narrow: it takes the spread of those it has, which is
    sqrt((n-1)/n) of what it should be, and the normal distribution's tails instead of Student's.
    Values that resemble the one before are worth fewer than they are, too: a machine's speed
    drifts. All three are made good by widening.

    Args:
        values: one a round, in the order of the rounds.
        statistic: takes an array and `axis`.
        independent: the values are known to have nothing to do with those before.
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
    if not independent:
        alike = _alike(values)
        wider *= np.sqrt((1 + alike) / (1 - alike))
    return Interval(value, value - wider * (value - low), value + wider * (high - value))


def _alike(values: NDArray[np.floating]) -> float:
    """How much values resemble the one before: correlation of ranks, which outliers leave alone.

    Source:
        Bayley and Hammersley, 1946, The "effective" number of independent observations in an
        autocorrelated time series: n values of which each depends so on the one before tell as
        much as n (1-r) / (1+r) independent ones. Kendall, 1954, Note on bias in the estimation of
        autocorrelation: too low by (1+3r)/n.
    """
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)
    ranks -= ranks.mean()
    found = float((ranks[1:] * ranks[:-1]).sum() / max((ranks**2).sum(), 1.0))
    found += (1 + 3 * found) / len(values)
    return min(max(found, 0.0), _MOST_ALIKE)


_MOST_ALIKE = 0.9
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
