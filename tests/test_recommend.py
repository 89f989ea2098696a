from __future__ import annotations

import math

import pytest

from u2export.benchmark.limits import Limits
from u2export.benchmark.recommend import Recommendation, raise_if_no_winner, recommend
from u2export.benchmark.recommend_report import format_recommendation
from u2export.benchmark.report import BenchmarkReport, Latency, MaskAccuracy, Row
from u2export.errors import InputError, ParityError

WRONG = MaskAccuracy(passed=False, reasons=("mask_iou 0.6000, at least 0.975",), iou=0.6, mae=0.2)


def _mask(
    iou: float | None = 0.99, mae: float | None = 0.001, worst: float | None = 0.98
) -> MaskAccuracy:
    return MaskAccuracy(passed=True, pictures=8, iou=iou, mae=mae, worst_iou=worst)


def _row(name: str, ms: float | None = 100.0, spread: float = 1.0, **facts: object) -> Row:
    """A row of one picture a call; its interval is `ms` plus and minus `spread`."""
    time = None if ms is None else Latency(median=ms, low=ms - spread, high=ms + spread)
    plain: dict[str, object] = {
        "size_mb": 5.0,
        "memory_mb": 200.0,
        "mask": _mask(),
        "latency": time,
    }
    known = {"file": name, "backend": "onnx", "precision": "fp32"}
    return Row.model_validate({"name": name, **known, **plain, **facts})


def _report(*rows: Row, stable: bool = True) -> BenchmarkReport:
    return BenchmarkReport(
        created="2025-01-01T00:00:00Z",
        command="u2export bench",
        machine={},
        versions={},
        reference="PyTorch",
        pictures=("cat.jpg",),
        baseline=rows[0].name if rows else "",
        rows=rows,
        calibration_ms=10.0,
        seconds=60.0,
        stable=stable,
    )


def _why(found: Recommendation, name: str) -> tuple[str, ...]:
    return next(lost.why for lost in found.lost if lost.name == name)


# What wins


def test_the_fastest_of_those_that_are_right_wins_and_the_slower_says_by_how_much():
    found = recommend(_report(_row("slow", 250.0), _row("quick", 86.0)), Limits())
    assert found.winner == "quick"
    assert _why(found, "slow") == ("slower than the winner: 250 ms against 86",)
    assert [lost.name for lost in found.lost] == ["slow"]
    assert (found.nearest, found.distance) == ("", ())


def test_a_fast_wrong_answer_never_wins():
    report = _report(_row("right", 250.0), _row("wrong", 5.0, mask=WRONG))
    found = recommend(report, Limits())
    assert found.winner == "right"
    assert found.front == ("right",)
    assert _why(found, "wrong") == ("its mask is wrong: mask_iou 0.6000, at least 0.975",)


def test_a_wrong_answer_does_not_win_alone_nor_is_it_the_nearest():
    report = _report(_row("wrong", 5.0, mask=WRONG))
    found = recommend(report, Limits(min_iou=0.5, max_mae=1.0))
    assert (found.winner, found.nearest, found.front) == ("", "", ())
    with pytest.raises(ParityError, match="no row with the right mask"):
        raise_if_no_winner(found)


def test_a_mask_that_was_not_compared_does_not_win_and_says_why():
    report = _report(
        _row("unknown", 5.0, mask=None, unjudged="PyTorch is not installed"),
        _row("silent", 5.0, mask=None),
        _row("right", 250.0),
    )
    found = recommend(report, Limits())
    assert found.winner == "right"
    why = "not compared with the reference: PyTorch is not installed"
    assert _why(found, "unknown") == (why,)
    assert _why(found, "silent") == ("not compared with the reference",)


def test_a_row_that_failed_says_only_how_it_failed():
    dead = _row("dead", None, mask=None, failed="killed", memory_mb=None)
    found = recommend(_report(dead, _row("right")), Limits(max_memory_mb=300.0))
    assert found.winner == "right"
    assert _why(found, "dead") == ("failed: killed",)


def test_a_row_with_the_right_mask_that_failed_later_does_not_win():
    found = recommend(_report(_row("dead", 5.0, failed="killed")), Limits())
    assert (found.winner, found.front, found.nearest) == ("", (), "")


def test_a_row_without_latency_does_not_win_even_without_limits():
    found = recommend(_report(_row("untimed", None)), Limits())
    assert found.winner == ""
    assert found.nearest == "untimed"
    assert found.distance == ("its latency was not measured",)


def test_an_empty_report_has_no_winner_and_no_front():
    found = recommend(_report(), Limits())
    assert found == Recommendation()
    assert "nothing fits" in format_recommendation(_report(), found, Limits())
    with pytest.raises(ParityError, match="nothing fits"):
        raise_if_no_winner(found)


# Limits


@pytest.mark.parametrize(
    ("limits", "facts", "why"),
    [
        ({"max_latency_ms": 90.0}, {"ms": 100.0}, "latency 100 ms, at most 90"),
        ({"min_iou": 0.98}, {"mask": _mask(iou=0.97)}, "IoU 0.97, at least 0.98"),
        ({"min_worst_iou": 0.9}, {"mask": _mask(worst=0.85)}, "worst IoU 0.85, at least 0.9"),
        ({"max_mae": 0.002}, {"mask": _mask(mae=0.003)}, "mask MAE 0.003, at most 0.002"),
        ({"max_size_mb": 10.0}, {"size_mb": 176.0}, "size 176 MB, at most 10"),
        ({"max_memory_mb": 500.0}, {"memory_mb": 1234.5}, "memory 1234 MB, at most 500"),
    ],
)
def test_each_limit_decides_alone(limits: dict[str, float], facts: dict[str, object], why: str):
    # "over" would win without the limit: by latency where that is not what is limited.
    over = _row("over", **{"ms": 50.0, **facts})
    within = _row("within", 80.0 if "max_latency_ms" in limits else 300.0)
    found = recommend(_report(over, within), Limits(**limits))
    assert found.winner == "within"
    assert _why(found, "over") == (why,)
    alone = recommend(_report(over), Limits(**limits))
    assert (alone.winner, alone.nearest) == ("", "over")


def test_without_its_limit_the_faster_row_wins_again():
    report = _report(_row("large", 50.0, size_mb=176.0), _row("small", 300.0))
    assert recommend(report, Limits()).winner == "large"
    assert recommend(report, Limits(max_size_mb=10.0)).winner == "small"


def test_a_row_exactly_at_its_limits_is_within_them():
    limits = Limits(
        max_latency_ms=100.0,
        min_iou=0.99,
        min_worst_iou=0.98,
        max_mae=0.001,
        max_size_mb=5.0,
        max_memory_mb=200.0,
    )
    found = recommend(_report(_row("exact")), limits)
    assert found.winner == "exact"
    assert raise_if_no_winner(found) is None


@pytest.mark.parametrize(
    ("limits", "facts", "name"),
    [
        ({"min_iou": 0.5}, {"mask": _mask(iou=None)}, "IoU"),
        ({"min_worst_iou": 0.5}, {"mask": _mask(worst=None)}, "worst IoU"),
        ({"max_mae": 1.0}, {"mask": _mask(mae=None)}, "mask MAE"),
        ({"max_size_mb": 999.0}, {"size_mb": 0.0}, "size"),
        ({"max_memory_mb": 9999.0}, {"memory_mb": None}, "memory"),
    ],
)
def test_a_limit_on_what_was_not_measured_is_missed(
    limits: dict[str, float], facts: dict[str, object], name: str
):
    report = _report(_row("unmeasured", 5.0, **facts), _row("measured"))
    assert recommend(report, Limits()).winner == "unmeasured"
    found = recommend(report, Limits(**limits))
    assert found.winner == "measured"
    assert _why(found, "unmeasured") == (f"its {name} was not measured",)


def test_a_row_tells_everything_that_is_against_it():
    report = _report(_row("wrong", 250.0, mask=WRONG, size_mb=20.0))
    found = recommend(report, Limits(max_latency_ms=200.0, max_size_mb=10.0))
    assert _why(found, "wrong") == (
        "its mask is wrong: mask_iou 0.6000, at least 0.975",
        "latency 250 ms, at most 200",
        "size 20 MB, at most 10",
    )


def test_a_miss_too_small_for_three_digits_shows_more_of_them():
    found = recommend(_report(_row("close", 200.04)), Limits(max_latency_ms=200.0))
    assert _why(found, "close") == ("latency 200.04 ms, at most 200",)


def test_latency_is_of_a_picture_not_of_a_batch():
    # 400 ms for four pictures are 100 ms each, with an interval of 99.5 to 100.5.
    four = _row("four b4", 400.0, spread=2.0, batch=4)
    found = recommend(_report(_row("one", 120.0), four), Limits(max_latency_ms=110.0))
    assert found.winner == "four b4"
    assert _why(found, "one") == ("latency 120 ms, at most 110",)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_latency_ms": -1.0}, "max_latency_ms must be a finite number of at least 0, not -1"),
        ({"max_size_mb": math.inf}, "max_size_mb must be a finite number of at least 0, not inf"),
        ({"max_memory_mb": math.nan}, "max_memory_mb must be a finite number of at least 0"),
        ({"max_mae": -0.1}, "max_mae must be a finite number of at least 0, not -0.1"),
        ({"min_iou": 98.0}, "min_iou must be between 0 and 1, not 98"),
        ({"min_iou": math.nan}, "min_iou must be between 0 and 1, not nan"),
        ({"min_worst_iou": -0.5}, "min_worst_iou must be between 0 and 1, not -0.5"),
    ],
)
def test_limits_that_nobody_can_mean_are_refused(limits: dict[str, float], sentence: str):
    with pytest.raises(InputError, match=f"^{sentence}"):
        Limits(**limits)


# Ties


@pytest.mark.parametrize(
    ("small", "large", "why"),
    [
        ({"memory_mb": 150.0}, {}, " and larger in memory: 200 MB against 150"),
        ({"size_mb": 2.5}, {}, " and larger as a file: 5 MB against 2.5"),
        ({"mask": _mask(iou=0.995)}, {}, " and lower in IoU: 0.99 against 0.995"),
        ({}, {}, ", equal in all else and later by name"),
        ({}, {"memory_mb": None}, ", and its memory was not measured"),
        ({"memory_mb": 150.0, "size_mb": 9.0}, {}, " and larger in memory: 200 MB against 150"),
    ],
)
def test_among_the_equally_fast_memory_then_size_then_iou_then_name_decides(
    small: dict[str, object], large: dict[str, object], why: str
):
    # 98 to 102 and 99 to 103 ms overlap, though "b" has the lower median.
    report = _report(_row("b", 100.0, 2.0, **large), _row("a", 101.0, 2.0, **small))
    found = recommend(report, Limits())
    assert found.winner == "a"
    assert _why(found, "b") == (f"as fast within the noise{why}",)


def test_intervals_that_do_not_meet_are_no_tie_however_small_the_other():
    # 99 to 101 ms and 102 to 104 ms.
    report = _report(_row("quick", 100.0), _row("small", 103.0, memory_mb=50.0))
    found = recommend(report, Limits())
    assert found.winner == "quick"
    assert _why(found, "small") == ("slower than the winner: 103 ms against 100",)


def test_the_intervals_of_batches_are_compared_a_picture():
    # Of four pictures 380 to 420 ms, so 95 to 105 each; of one 104 to 106. As calls: far apart.
    four = _row("four b4", 400.0, spread=20.0, batch=4)
    found = recommend(_report(four, _row("one", 105.0, memory_mb=100.0)), Limits())
    assert found.winner == "one"
    # 109 to 111 ms do not meet 95 to 105, though they are less than 420.
    apart = recommend(_report(four, _row("one", 110.0, memory_mb=100.0)), Limits())
    assert apart.winner == "four b4"


def test_a_tie_is_with_the_fastest_and_not_a_chain():
    # 90-110 overlaps with 108-128, which overlaps with 126-146; but that is not as fast as the
    # first, so its small memory does not count.
    report = _report(
        _row("first", 100.0, 10.0, memory_mb=300.0),
        _row("second", 118.0, 10.0, memory_mb=200.0),
        _row("third", 136.0, 10.0, memory_mb=100.0),
        _row("last", 250.0, 10.0, memory_mb=100.0),
    )
    found = recommend(report, Limits())
    assert found.winner == "second"
    assert _why(found, "first") == (
        "as fast within the noise and larger in memory: 300 MB against 200",
    )
    assert _why(found, "third") == ("slower than the fastest, first: 136 ms against 100",)
    # Its 240 to 260 ms do not meet the winner's either.
    assert _why(found, "last") == ("slower than the winner: 250 ms against 118",)


def test_a_row_over_its_limits_ties_with_nobody():
    # "noisy" would take "small" into its tie, but is too large to be chosen.
    report = _report(
        _row("noisy", 90.0, 60.0, size_mb=99.0),
        _row("plain", 100.0),
        _row("small", 140.0, memory_mb=50.0),
    )
    assert recommend(report, Limits(max_size_mb=10.0)).winner == "plain"


# The Pareto front


def test_the_front_leaves_out_exactly_the_dominated():
    report = _report(
        _row("dominated", 120.0, mask=_mask(iou=0.98), size_mb=6.0, memory_mb=210.0),
        _row("small", 300.0, size_mb=1.0, mask=_mask(iou=0.97)),
        _row("fast", 50.0, size_mb=40.0, memory_mb=400.0),
        _row("exact", 400.0, mask=_mask(iou=1.0), size_mb=40.0, memory_mb=500.0),
        _row("lean", 500.0, mask=_mask(iou=0.97), size_mb=50.0, memory_mb=20.0),
        _row("all round", 100.0),
        _row("half dominated", 100.0, memory_mb=201.0),
        _row("wrong", 1.0, mask=WRONG, size_mb=0.1, memory_mb=1.0),
    )
    found = recommend(report, Limits())
    assert found.front == ("fast", "all round", "small", "exact", "lean")


def test_limits_do_not_change_the_front():
    report = _report(_row("fast", 50.0, size_mb=40.0), _row("small", 100.0))
    found = recommend(report, Limits(max_size_mb=10.0, max_latency_ms=1.0))
    assert found.front == ("fast", "small")


def test_mae_tells_rows_of_equal_iou_apart_on_the_front_and_only_those():
    blurred = _row("blurred", mask=_mask(mae=0.002))
    assert recommend(_report(_row("sharp"), blurred), Limits()).front == ("sharp",)
    higher = _row("higher", mask=_mask(iou=0.991, mae=0.002))
    assert recommend(_report(_row("sharp"), higher), Limits()).front == ("higher",)


def test_equal_rows_are_both_on_the_front():
    assert recommend(_report(_row("b"), _row("a")), Limits()).front == ("a", "b")


def test_what_was_not_measured_is_worst_and_cannot_dominate():
    unmeasured = _row("unmeasured", memory_mb=None)
    assert recommend(_report(unmeasured, _row("full")), Limits()).front == ("full",)
    # Faster, but nothing is known of its memory: neither is better in all.
    quick = _row("quick", 50.0, memory_mb=None)
    assert recommend(_report(quick, _row("full")), Limits()).front == ("quick", "full")
    # Of two without memory, the others decide.
    assert recommend(_report(quick, unmeasured), Limits()).front == ("quick",)


# Where nothing fits


def test_where_nothing_fits_the_nearest_is_named_with_what_it_misses():
    # "slow" is over by 0.25 and 0.5 of the limits, "large" by 0 and 1.
    report = _report(_row("large", 90.0, size_mb=8.0), _row("slow", 125.0, size_mb=6.0))
    found = recommend(report, Limits(max_latency_ms=100.0, max_size_mb=4.0))
    assert (found.winner, found.nearest) == ("", "slow")
    assert found.distance == (
        "latency 125 ms, at most 100: 25 ms over",
        "size 6 MB, at most 4: 2 MB over",
    )
    assert [lost.name for lost in found.lost] == ["large", "slow"]
    assert _why(found, "slow") == ("latency 125 ms, at most 100", "size 6 MB, at most 4")
    with pytest.raises(ParityError) as raised:
        raise_if_no_winner(found)
    assert str(raised.value) == (
        "nothing fits; nearest is slow: latency 125 ms, at most 100: 25 ms over; "
        "size 6 MB, at most 4: 2 MB over"
    )
    assert raised.value.exit_status == 6


def test_an_iou_is_missed_by_its_distance_from_one():
    # Error 0.03 where 0.015 is allowed: over by 1. 130 ms where 100 are: over by 0.3; 230: by 1.3.
    limits = Limits(max_latency_ms=100.0, min_iou=0.985)
    inexact = _row("inexact", 100.0, mask=_mask(iou=0.97))
    assert recommend(_report(inexact, _row("slow", 130.0)), limits).nearest == "slow"
    found = recommend(_report(inexact, _row("slow", 230.0)), limits)
    assert found.nearest == "inexact"
    assert found.distance == ("IoU 0.97, at least 0.985: 0.015 under",)


def test_what_was_not_measured_is_farther_than_any_miss():
    report = _report(_row("unknown", memory_mb=None), _row("huge", memory_mb=9000.0))
    found = recommend(report, Limits(max_memory_mb=100.0))
    assert found.nearest == "huge"
    found = recommend(_report(report.rows[0]), Limits(max_memory_mb=100.0))
    assert found.distance == ("its memory was not measured",)


def test_a_perfect_mask_that_nobody_has_is_nearest_to_the_best_and_not_the_fastest():
    report = _report(_row("fast", 5.0, mask=_mask(iou=0.98)), _row("close", mask=_mask(iou=0.999)))
    assert recommend(report, Limits(min_iou=1.0)).nearest == "close"
    report = _report(_row("fast", 5.0, mask=_mask(mae=0.01)), _row("close", mask=_mask(mae=0.002)))
    assert recommend(report, Limits(max_mae=0.0)).nearest == "close"


def test_the_nearest_has_the_right_mask_even_where_a_wrong_one_misses_less():
    report = _report(_row("wrong", 101.0, mask=WRONG), _row("right", 900.0))
    assert recommend(report, Limits(max_latency_ms=100.0)).nearest == "right"


# For people and machines


def test_a_recommendation_survives_json():
    report = _report(_row("slow", 250.0), _row("wrong", 5.0, mask=WRONG))
    for limits in (Limits(), Limits(max_latency_ms=200.0)):
        found = recommend(report, limits)
        assert Recommendation.model_validate_json(found.model_dump_json()) == found


def test_the_text_names_the_winner_with_its_figures_the_front_and_why_the_others_lost():
    report = _report(
        _row("quick[b].onnx", 86.0, size_mb=2.25),
        _row("lean.onnx", 250.0, memory_mb=90.0, size_mb=20.0),
        _row("wrong.onnx", 5.0, mask=WRONG),
    )
    limits = Limits(max_latency_ms=400.0, max_size_mb=10.0)
    told = format_recommendation(report, recommend(report, limits), limits)
    lines = told.splitlines()
    assert lines[0] == (
        "take quick[b].onnx: the right mask, latency at most 400 ms, size at most 10 MB"
    )
    figures = "latency 86 ms, IoU 0.9900, worst IoU 0.9800, mask MAE 0.001, size 2.25 MB"
    assert lines[1] == f"  {figures}, memory 200 MB"
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert rows == [
        ["quick[b].onnx", "winner", "86", "85 to 87", "0.9900", "0.001", "2.25", "200"],
        ["lean.onnx", "does not fit", "250", "249 to 251", "0.9900", "0.001", "20", "90"],
    ]
    assert lines[-2:] == [
        "  lean.onnx: size 20 MB, at most 10",
        "  wrong.onnx: its mask is wrong: mask_iou 0.6000, at least 0.975",
    ]
    assert max(map(len, lines)) <= 118
    assert "\x1b" not in told


def test_the_text_says_what_is_nearest_where_nothing_fits():
    limits = Limits(max_latency_ms=100.0)
    report = _report(_row("slow", 125.0))
    lines = format_recommendation(report, recommend(report, limits), limits).splitlines()
    assert lines[:3] == [
        "nothing fits: the right mask, latency at most 100 ms",
        "nearest is slow, which misses:",
        "  latency 125 ms, at most 100: 25 ms over",
    ]
    assert lines[-1] == "  slow: latency 125 ms, at most 100"


def test_the_text_leaves_unmeasured_figures_empty():
    bare = _row("bare", None, memory_mb=None, size_mb=0.0, mask=_mask(iou=None, mae=None))
    report = _report(bare)
    told = format_recommendation(report, recommend(report, Limits()), Limits())
    row = next(line for line in told.splitlines() if "│" in line)
    assert [c.strip() for c in row.split("│")[1:-1]] == ["bare", "does not fit", *[""] * 6]
    assert "inf" not in told


def test_the_text_warns_of_an_unsteady_measurement():
    report = _report(_row("one"), stable=False)
    assert "less steady" in format_recommendation(report, recommend(report, Limits()), Limits())
    steady = _report(_row("one"))
    assert "steady" not in format_recommendation(steady, recommend(steady, Limits()), Limits())
