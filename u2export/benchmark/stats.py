"""Statistics of measurements that are taken in interleaved rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2export.benchmark.report import Latency

# Percent, and the number of samples that this percentile needs at 99 percent confidence.
# Source: MLPerf Inference, the early-stopping criterion of its LoadGen.
PERCENTILES = {"p90": (90, 64), "p95": (95, 130), "p99": (99, 662)}
BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 1
CONFIDENCE = 0.95
MIN_VALUES = 3  # an interval needs at least this many values
# A smaller difference counts as none, however narrow the interval. Two workers of one file differ
# by this much, because their memory lies at different addresses (benchmarks/repeatability.py, A/A).
MIN_RATIO_CHANGE = 0.02
# A round is disturbed if the threads of a worker wait for a core for a larger share of its time.
# In undisturbed rounds they wait for 0 to 1 percent.
MAX_WAITING_SHARE = 0.05
# If a smaller share of the rounds is undisturbed, all rounds count: so few do not represent the
# machine.
MIN_UNDISTURBED_SHARE = 0.2
_MAX_AUTOCORRELATION = 0.9
_NORMAL_QUANTILE = 1.959964  # the 97.5 percent point of the normal distribution
Blocks = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 percent interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval, relative to the figure."""
        return (self.high - self.low) / 2 / self.value


def summarize_latency(blocks: Blocks, disturbed: Blocks = ()) -> Latency:
    """Summarize the samples of one row.

    Args:
        blocks: ms, one block per round, in the order of measurement; at least one sample.
        disturbed: blocks of disturbed rounds. They are stored and not used.
    """
    samples = np.concatenate([np.asarray(block, float) for block in blocks])
    low, high = _median_interval(blocks, samples)
    percentiles = {
        name: float(np.percentile(samples, percent))
        for name, (percent, min_samples) in PERCENTILES.items()
        if len(samples) >= min_samples
    }
    return Latency(
        median=float(np.median(samples)),
        low=low,
        high=high,
        blocks=_rounded_blocks(blocks),
        disturbed=_rounded_blocks(disturbed),
        **percentiles,
    )


def _median_interval(blocks: Blocks, samples: NDArray[np.floating]) -> tuple[float, float]:
    """Return both ends of the median's interval, or the extremes of too few blocks."""
    medians = np.log([np.median(block) for block in blocks])
    interval = _exponentiated(bootstrap_interval(medians, np.median))
    median = float(np.median(samples))
    low, high = min(interval.low, median), max(interval.high, median)
    if math.isfinite(high - low):
        return low, high
    return float(samples.min()), float(samples.max())


def _rounded_blocks(blocks: Blocks) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(sample), 4) for sample in block) for block in blocks)


def latency_ratio(blocks: Blocks, baseline: Blocks, scale: float = 1.0) -> Interval:
    """Compare two rows that were measured in the same rounds.

    Whatever slows the machine down in one round slows both rows. Their ratio does not change.

    Args:
        blocks: ms, one block per round.
        baseline: ms of the baseline row, in the same rounds.
        scale: pictures per call of the baseline, divided by pictures per call of the row.

    Returns:
        The interquartile mean of the ratios of medians, and its interval. Below 1 is faster than
        the baseline.
    """
    pairs = zip(blocks, baseline, strict=True)
    ratios = [float(np.median(block) / np.median(other)) for block, other in pairs]
    return _exponentiated(bootstrap_interval(np.log(ratios), _interquartile_mean), scale)


def _exponentiated(logarithm: Interval, scale: float = 1.0) -> Interval:
    """Convert an interval of logarithms. Such an interval cannot reach below 0."""
    ends = (logarithm.value, logarithm.low, logarithm.high)
    return Interval(*(scale * float(np.exp(end)) for end in ends))


def verdict(ratio: Interval, min_change: float = MIN_RATIO_CHANGE) -> str:
    """Return `faster` or `slower` if interval and size of the ratio agree, else `no difference`."""
    if ratio.low > 1 and ratio.value > 1 + min_change:
        return "slower"
    if ratio.high < 1 and ratio.value < 1 - min_change:
        return "faster"
    return "no difference"


def undisturbed_rounds(waiting_shares: Sequence[Sequence[float]]) -> list[int]:
    """Return the indexes of the rounds in which no other process took the cores.

    Other processes slow down two rows by different amounts. Such a round says nothing about them.

    Args:
        waiting_shares: for each row and round, the share of its time that a thread waited for a
            core.

    Returns:
        The indexes of all rounds if too few are undisturbed.
    """
    rounds = list(range(len(waiting_shares[0]))) if waiting_shares else []
    disturbed = set(disturbed_rounds(waiting_shares))
    undisturbed = [index for index in rounds if index not in disturbed]
    enough = len(undisturbed) >= max(MIN_VALUES, MIN_UNDISTURBED_SHARE * len(rounds))
    return undisturbed if enough else rounds


def disturbed_rounds(waiting_shares: Sequence[Sequence[float]]) -> list[int]:
    """Return the indexes of the rounds in which the threads of a row waited for a core.

    Args:
        waiting_shares: as for `undisturbed_rounds`.
    """
    rounds = enumerate(zip(*waiting_shares, strict=True))
    return [index for index, shares in rounds if max(shares) > MAX_WAITING_SHARE]


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.floating],
    statistic: Callable[..., NDArray[np.floating] | float],
    *,
    independent: bool = False,
) -> Interval:
    """Bootstrap the interval of a statistic. It is infinite for fewer than three values.

    The bootstrap is too narrow for few values. It uses their own spread, which is sqrt((n-1)/n) of
    the true one. It uses the tails of the normal distribution instead of Student's. Consecutive
    values also resemble each other, because the speed of a machine drifts. The interval is widened
    for all three reasons.

    Args:
        values: one value per round, in the order of the rounds.
        statistic: function of an array and `axis`.
        independent: the values do not depend on the values before them.
    """
    values = np.asarray(values, float)
    count, value = len(values), float(statistic(values, axis=0))
    if count < MIN_VALUES:
        return Interval(value, -math.inf, math.inf)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    resamples = values[random.integers(0, count, (BOOTSTRAP_RESAMPLES, count))]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.asarray(statistic(resamples, axis=1)), [tail, 1 - tail])
    widening = np.sqrt(count / (count - 1)) * _student_quantile(count - 1) / _NORMAL_QUANTILE
    if not independent:
        correlation = _autocorrelation(values)
        widening *= np.sqrt((1 + correlation) / (1 - correlation))
    return Interval(value, value - widening * (value - low), value + widening * (high - value))


def _autocorrelation(values: NDArray[np.floating]) -> float:
    """Return the rank correlation of each value with the value before it, in [0,0.9].

    Outliers do not change ranks.

    Source:
        Bayley and Hammersley, 1946, The "effective" number of independent observations in an
        autocorrelated time series: n values with autocorrelation r are worth n (1-r) / (1+r)
        independent ones. Kendall, 1954, Note on bias in the estimation of autocorrelation: the
        estimate is too low by (1+3r)/n.
    """
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)
    ranks -= ranks.mean()
    correlation = float((ranks[1:] * ranks[:-1]).sum() / max((ranks**2).sum(), 1.0))
    correlation += (1 + 3 * correlation) / len(values)
    return min(max(correlation, 0.0), _MAX_AUTOCORRELATION)


def _student_quantile(degrees_of_freedom: int) -> float:
    """Return the 97.5 percent point of Student's distribution.

    It is exact to a percent from 2 degrees of freedom on.

    Source:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z, n = _NORMAL_QUANTILE, degrees_of_freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def _interquartile_mean(values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """Return the mean of the middle half. A few disturbed rounds do not change it."""
    count = values.shape[axis]
    cut = count // 4
    ordered = np.sort(values, axis=axis)
    middle = ordered.take(range(cut, count - cut), axis=axis)
    mean: NDArray[np.floating] = middle.mean(axis=axis)
    return mean
