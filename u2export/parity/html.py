"""A parity report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from u2export.compare.budgets import Budget
from u2export.compare.metrics import MIN_CONTRAST, SUBJECT_THRESHOLD, Difference, MaskComparison
from u2export.parity.explanations import failure_reason, verdict_reason
from u2export.parity.report import CandidateResult, CaseResult, ParityReport
from u2export.reports.heat_map import (
    HEAT_COLOURS,
    data_uri,
    heat_map,
    thumbnail_size,
    to_gray_image,
)
from u2export.reports.mask_pair import MaskPair
from u2export.reports.text import printable

# The figures of a picture: field of `Difference`, name, meaning, number format.
_FIGURES = (
    ("mask_mae", "Mask MAE", "how far the masks are apart on average; 0 is equal", ".3g"),
    ("mask_iou", "Mask IoU", "how much of the two subjects is in both; 1 is equal", ".4f"),
    ("mask_flipped", "Flipped", "share of pixels that changed sides; 0 % is equal", ".3%"),
    ("boundary_f", "Boundary F", "how well the outlines agree; 1 is equal", ".4f"),
    ("raw_max", "Raw max", "largest difference of the network's output", ".3g"),
    ("raw_mean", "Raw mean", "mean difference of the network's output", ".3g"),
    ("raw_p999", "Raw p99.9", "99.9 % of the output's pixels differ by less", ".3g"),
    ("raw_cosine", "Cosine", "how alike the outputs' patterns are; 1 is equal", ".6f"),
)


@dataclass(frozen=True)
class _Figure:
    """A row of a candidate's table, as text; `over` names the columns that exceed their bound."""

    name: str
    meaning: str
    worst: str
    overall: str
    bound: str
    over: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """A candidate, a case or a shown picture, with its state."""

    state: str
    candidate: CandidateResult | None = None
    case: CaseResult | None = None
    reason: str = ""
    figures: tuple[_Figure, ...] = ()


@dataclass(frozen=True)
class _Panel:
    title: str
    source: str


@dataclass(frozen=True)
class _ShownCase:
    """A picture with its two masks and where they differ."""

    pair: MaskPair
    row: _Row
    panels: tuple[_Panel, ...]
    distance: str


def parity_page(report: ParityReport, mask_pairs: Sequence[MaskPair]) -> str:
    """Write the page: verdict, candidates, pictures, cases, and what ran where.

    Args:
        report: the report.
        mask_pairs: cases worth showing, in this order.
    """
    text = _template().render(
        report=report,
        reason=verdict_reason(report),
        candidates=[_candidate_row(result) for result in report.candidates],
        cases=_case_rows(report),
        shown_cases=[_shown_case(pair, report) for pair in mask_pairs],
        heat_colours=", ".join(f"rgb{colour}" for colour in HEAT_COLOURS),
    )
    return printable(text)


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("u2export.parity").joinpath("report.html.j2")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _candidate_row(result: CandidateResult) -> _Row:
    return _Row(result.state, result, result.worst, failure_reason(result), _figures(result))


def _case_rows(report: ParityReport) -> list[_Row]:
    """Every case of every candidate: first the failed, then the passed, then the skipped."""
    rows = [_Row(case.state, result, case) for result in report.candidates for case in result.cases]
    return sorted(rows, key=lambda row: ("failed", "passed", "skipped").index(row.state))


def _figures(result: CandidateResult) -> tuple[_Figure, ...]:
    if result.worst is None or result.worst.difference is None:
        return ()
    difference, bounds = result.worst.difference, _bounds(result.budget)
    overall = _overall(result.judgement)
    has_subject = (result.worst.contrast or 0.0) >= MIN_CONTRAST
    return tuple(
        _Figure(
            name=name,
            meaning=meaning,
            worst=_worst(difference, field, number_format, has_subject),
            overall=overall.get(field, ""),
            bound=bounds.get(field, "no bound"),
            over=_columns_over(result, field),
        )
        for field, name, meaning, number_format in _FIGURES
    )


def _worst(difference: Difference, field: str, number_format: str, has_subject: bool) -> str:
    text = format(getattr(difference, field), number_format)
    checked = has_subject or not field.startswith(("mask", "boundary"))
    return text if checked else f"{text} (no subject: not judged)"


def _overall(comparison: MaskComparison | None) -> dict[str, str]:
    """The figures over all pictures, by name."""
    if comparison is None:
        return {}
    figures = {"raw_max": f"{comparison.raw_max:.3g}", "raw_mean": f"{comparison.raw_mean:.3g}"}
    if comparison.mask_mae is not None:
        figures["mask_mae"] = f"{comparison.mask_mae:.3g}"
    if comparison.mask_iou is not None and comparison.worst_iou is not None:
        figures["mask_iou"] = f"{comparison.mask_iou:.4f}, worst {comparison.worst_iou:.4f}"
    return figures


def _bounds(budget: Budget) -> dict[str, str]:
    """The allowed values, by the figure's name."""
    bounds = {
        "mask_mae": f"at most {budget.mask_mae:g} over all",
        "mask_iou": f"at least {budget.worst_iou:g} each, {budget.mask_iou:g} over all",
        "raw_mean": f"at most {budget.raw_mean:g} each",
    }
    if budget.raw_max is not None:
        bounds["raw_max"] = f"at most {budget.raw_max:g} each"
    if budget.worst_boundary > 0:
        bounds["boundary_f"] = f"at least {budget.worst_boundary:g} each"
    return bounds


def _columns_over(result: CandidateResult, field: str) -> tuple[str, ...]:
    """Which of `worst` and `overall` are over the bound, by the report's reasons."""
    names = (field, "worst_iou") if field == "mask_iou" else (field,)
    worst = result.worst.reasons if result.worst and not result.worst.passed else ()
    reasons = {"worst": " ".join(worst), "overall": " ".join(result.reasons)}
    return tuple(column for column, text in reasons.items() if any(name in text for name in names))


def _shown_case(pair: MaskPair, report: ParityReport) -> _ShownCase:
    box = thumbnail_size(pair.picture)
    panels = [
        _Panel("picture", data_uri(Image.fromarray(pair.picture), box)),
        _Panel("reference's mask", data_uri(to_gray_image(pair.reference_mask), box)),
        _Panel("candidate's mask", data_uri(to_gray_image(pair.candidate_mask), box)),
    ]
    row = _row_of(pair, report)
    if pair.reference_mask.shape != pair.candidate_mask.shape:
        return _ShownCase(pair, row, tuple(panels), "the masks are of different sizes")
    panels.append(
        _Panel("difference", data_uri(heat_map(pair.reference_mask, pair.candidate_mask, box), box))
    )
    return _ShownCase(pair, row, tuple(panels), _distance(pair))


def _row_of(pair: MaskPair, report: ParityReport) -> _Row:
    """The report's result for a shown case; an empty row where it has none."""
    for result in report.candidates:
        for case in result.cases:
            if (result.party.name, case.name) == (pair.candidate, pair.case):
                return _Row(case.state, result, case)
    return _Row("not in the report")


def _distance(pair: MaskPair) -> str:
    difference = np.abs(pair.reference_mask - pair.candidate_mask)
    flipped = (
        (pair.reference_mask >= SUBJECT_THRESHOLD) != (pair.candidate_mask >= SUBJECT_THRESHOLD)
    ).mean()
    return (
        f"The masks differ by {difference.max():.3g} at most and {difference.mean():.3g} on "
        f"average; {flipped:.3%} of the pixels changed sides."
    )
