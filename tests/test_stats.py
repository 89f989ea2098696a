"""Statistics of interleaved blocks: are their claims true of data whose truth is known?"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from scipy import stats as reference

from u2export.benchmark import stats
from u2export.benchmark.baseline import (
    Verdict,
    compare_reports,
    format_change,
    raise_if_slower,
)
from u2export.benchmark.report import BenchmarkReport, Row
from u2export.errors import InputError, ParityError


def _rounds(seed: int, factor: float, rounds: int = 12, drift: float = 0.2):
    """Two workers on one machine that slows down and speeds up; the second is `factor` slower."""
    rng = np.random.default_rng(seed)
    machine = 100 * (1 + drift * rng.random(rounds))
    one = [m * (1 + 0.02 * np.abs(rng.standard_normal(4))) for m in machine]
    other = [m * factor * (1 + 0.02 * np.abs(rng.standard_normal(4))) for m in machine]
    return one, other


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "no difference"), (1.05, "slower")])
def test_95_of_100_trials_say_what_is_so(factor: float, expected: str):
    verdicts = []
    for seed in range(100):
        one, other = _rounds(seed, factor)
        verdicts.append(stats.verdict(stats.latency_ratio(other, one)))
    assert verdicts.count(expected) >= 95
    assert "faster" not in verdicts or factor == 1.0


def test_an_interval_holds_the_truth_in_about_95_of_100_trials_even_of_few_rounds():
    for rounds in (6, 20):
        held = 0
        for seed in range(300):
            one, other = _rounds(seed, 1.03, rounds)
            found = stats.latency_ratio(other, one)
            held += found.low <= 1.03 <= found.high
        assert held >= 0.92 * 300


def test_one_or_two_rounds_tell_nothing():
    assert stats.verdict(stats.latency_ratio([[20.0]], [[10.0]])) == "no difference"
    assert stats.verdict(stats.latency_ratio([[20.0], [20.0]], [[10.0], [10.0]])) == "no difference"
    found = stats.summarize_latency([[10.0, 12.0]])
    assert (found.low, found.median, found.high) == (10.0, 11.0, 12.0)


def test_a_burst_in_two_of_twelve_rounds_moves_nothing():
    one, other = _rounds(3, 1.0)
    for place in (2, 7):
        other[place] = other[place] * 3
    assert stats.verdict(stats.latency_ratio(other, one)) == "no difference"
    one, other = _rounds(3, 1.05)
    for place in (2, 7):  # on average the other is faster now, and yet it is the slower one
        one[place] = one[place] * 3
    assert stats.latency_ratio(other, one).value == pytest.approx(1.05, abs=0.01)


@pytest.mark.parametrize(("alike", "count"), [(0.0, 24), (0.3, 24), (0.3, 60), (0.6, 60)])
def test_an_interval_covers_the_truth_even_where_rounds_resemble_those_before(alike, count):
    rng, covered, trials = np.random.default_rng(7), 0, 200
    for _ in range(trials):
        noise, values, last = rng.standard_normal(count), [], rng.standard_normal()
        for one in noise:  # a first-order autoregressive process around 0
            last = alike * last + np.sqrt(1 - alike**2) * one
            values.append(last)
        found = stats.bootstrap_interval(values, stats._interquartile_mean)
        covered += found.low <= 0 <= found.high
    assert covered >= 0.9 * trials  # 0.69 to 0.86 without making it good


@pytest.mark.parametrize(
    ("waited", "kept"),
    [
        ([[0.0, 0.5, 0.0, 0.02, 0.05], [0.0, 0.0, 0.2, 0.0, 0.0]], [0, 3, 4]),
        ([[0.0, 0.5, 0.5, 0.02, 0.5]], [0, 1, 2, 3, 4]),  # two are too few to tell anything
        ([[0.5] * 13 + [0.0] * 3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        ([[0.5] * 12 + [0.0] * 3], [12, 13, 14]),
        ([], []),
    ],
)
def test_rounds_in_which_another_process_took_the_cores_are_left_out(waited, kept):
    assert stats.undisturbed_rounds(waited) == kept


def test_a_machine_that_changes_its_speed_makes_no_time_negative():
    for blocks in ([[30.0]] * 13 + [[10.0]] * 11, [[10.0], [14.0], [18.0]]):
        assert stats.summarize_latency(blocks).low > 0


@pytest.mark.parametrize("freedom", [3, 5, 11, 30])
def test_students_distribution_is_as_wide_as_scipys(freedom: int):
    assert stats._student_quantile(freedom) == pytest.approx(
        reference.t.ppf(0.975, freedom), rel=0.02
    )


@pytest.mark.parametrize(
    ("count", "told"),
    [(63, []), (64, ["p90"]), (130, ["p90", "p95"]), (662, ["p90", "p95", "p99"])],
)
def test_percentiles_are_told_only_of_enough_samples(count: int, told: list[str]):
    found = stats.summarize_latency([list(range(1, count + 1))])
    assert [name for name in ("p90", "p95", "p99") if getattr(found, name) is not None] == told
    assert found.sample_count == count
    assert found.median == (count + 1) / 2


def _report(
    median: float, calibration: float, processor: str = "a", name: str = "x"
) -> BenchmarkReport:
    rng = np.random.default_rng(0)
    blocks = [[median * (1 + 0.002 * v) for v in rng.standard_normal(5)] for _ in range(10)]
    fixed = [[calibration * (1 + 0.002 * v) for v in rng.standard_normal(3)] for _ in range(10)]
    row = Row(
        name=name,
        file=name,
        backend="onnx",
        precision="fp32",
        latency=stats.summarize_latency(blocks),
    )
    return BenchmarkReport(
        created="", command="", versions={}, reference="", pictures=(), baseline=name, rows=(row,),
        machine={"processor": processor, "usable CPUs": "2"}, calibration_ms=calibration,
        calibration=tuple(map(tuple, fixed)), seconds=1, stable=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("median", "calibration", "slower"),
    [
        (100, 10, False),
        (115, 10, True),
        (108, 10, False),  # less than the tenth that is allowed
        (130, 13, False),  # the machine is 1.3 times slower today, and so is everything
        (130, 10, True),
        (0.13, 10, False),
    ],
)
def test_a_slowdown_is_one_only_where_the_machine_does_not_explain_it(median, calibration, slower):
    then = _report(100 if median > 1 else 0.1, 10)
    [found] = compare_reports(_report(median, calibration), then, 0.1)
    assert found.verdict is (Verdict.SLOWER if slower else Verdict.NOT_SLOWER)


@pytest.mark.parametrize(
    ("median", "high", "verdict", "sentence"),
    [
        (100, 101, Verdict.NOT_SLOWER, None),
        (200, 202, Verdict.SLOWER, "^slower than the baseline by more than 10%: x 2.00"),
        (200, 2000, Verdict.NOT_SETTLED, "^it is not settled what is slower than the baseline"),
        (105, 1050, Verdict.NOT_SLOWER, None),  # less than the tenth that is allowed
        (20_000, 400_000, Verdict.SLOWER, "x 200.00"),  # its interval starts at 10 times
    ],
)
def test_too_wide_an_interval_settles_nothing_and_is_no_pass(median, high, verdict, sentence):
    now = _report(median, 10)
    latency = now.rows[0].latency.model_copy(update={"low": median**2 / high, "high": high})
    row = now.rows[0].model_copy(update={"latency": latency})
    changes = compare_reports(now.model_copy(update={"rows": (row,)}), _report(100, 10), 0.1)
    assert changes[0].verdict is verdict
    assert verdict.value in format_change(changes[0])
    with pytest.raises(ParityError, match=sentence) if sentence else contextlib.nullcontext():
        raise_if_slower(changes, 0.1)


def test_another_machine_and_nothing_in_common_are_refused():
    with pytest.raises(InputError, match="on another machine: processor: b, here a"):
        compare_reports(_report(1, 1), _report(1, 1, processor="b"), 0.1)
    old = _report(1, 1).model_copy(update={"schema_version": 1})
    with pytest.raises(InputError, match="schema 1, Python none; now schema 2"):
        compare_reports(_report(1, 1), old, 0.1)
    features = {"processor": "a", "usable CPUs": "2", "features": "AVX2"}
    with pytest.raises(InputError, match="machine: features: none, here AVX2"):
        compare_reports(_report(1, 1).model_copy(update={"machine": features}), _report(1, 1), 0.1)
    with pytest.raises(InputError, match="no row in common"):
        compare_reports(_report(1, 1), _report(1, 1, name="y"), 0.1)
