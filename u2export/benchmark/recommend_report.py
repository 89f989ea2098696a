"""A recommendation as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from u2export.benchmark.limits import (
    IOU,
    LATENCY,
    MAE,
    MEMORY,
    METRICS,
    SIZE,
    Limits,
    Metric,
    find_violations,
    format_short,
)
from u2export.benchmark.recommend import Recommendation, latency_interval
from u2export.benchmark.report import BenchmarkReport, Row
from u2export.reports.table import render_tables


def format_recommendation(
    report: BenchmarkReport, recommendation: Recommendation, limits: Limits
) -> str:
    """Format the winner, the Pareto front, and why the others lost.

    Args:
        report: the benchmark.
        recommendation: result of `recommend` for this report and these limits.
        limits: limits on the figures.
    """
    if recommendation.winner:
        lines = _winner_lines(report.row(recommendation.winner), limits)
    else:
        lines = _nearest_lines(recommendation, limits)
    if not report.stable:
        lines.append("the measurement was less steady than it should be: measure again")
    if recommendation.front:
        front = [report.row(name) for name in recommendation.front]
        lines.append("Pareto front, the rows that no other beats in everything:")
        lines.append(_front_table(front, recommendation.winner, limits))
    if recommendation.lost:
        lines.append("why not the others:" if recommendation.winner else "why none:")
    lines += [f"  {rejected.name}: {'; '.join(rejected.why)}" for rejected in recommendation.lost]
    return "\n".join(lines)


def _winner_lines(winner: Row, limits: Limits) -> list[str]:
    values = [(metric, metric.value(winner)) for metric in METRICS]
    figures = [
        f"{metric.name} {metric.with_unit(_format_value(metric, value))}"
        for metric, value in values
        if value is not None
    ]
    return [f"take {winner.name}: {_requirements(limits)}", f"  {', '.join(figures)}"]


def _nearest_lines(recommendation: Recommendation, limits: Limits) -> list[str]:
    lines = [f"nothing fits: {_requirements(limits)}"]
    if not recommendation.nearest:
        return [*lines, "there is no row with the right mask"]
    lines.append(f"nearest is {recommendation.nearest}, which misses:")
    return lines + [f"  {phrase}" for phrase in recommendation.distance]


def _requirements(limits: Limits) -> str:
    """Describe the limits."""
    bounds = [(metric, metric.limit(limits)) for metric in METRICS]
    phrases = [
        f"{metric.name} {metric.bound} {metric.with_unit(f'{limit:.10g}')}"
        for metric, limit in bounds
        if limit is not None
    ]
    return ", ".join(["the right mask", *phrases])


def _front_table(rows: Sequence[Row], winner: str, limits: Limits) -> str:
    table = Table(
        "candidate", "verdict", "ms a picture", "95 %", "IoU", "mask MAE", "file MB", "memory MB"
    )
    for row in rows:
        verdict = "does not fit" if find_violations(row, limits) else "fits"
        table.add_row(row.name, "winner" if row.name == winner else verdict, *_figure_cells(row))
    return render_tables(table)


def _figure_cells(row: Row) -> list[str]:
    low, high = (format_short(end) for end in latency_interval(row))
    interval = f"{low} to {high}" if row.latency else ""
    metrics = (LATENCY, IOU, MAE, SIZE, MEMORY)
    latency, *others = (_format_value(metric, metric.value(row)) for metric in metrics)
    return [latency, interval, *others]


def _format_value(metric: Metric, value: float | None) -> str:
    """Format a figure without its unit. IoUs are all near 1 and get four decimals."""
    if value is None:
        return ""
    return f"{value:.4f}" if metric.higher_is_better else format_short(value)
