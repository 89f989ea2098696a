"""A parity report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from u2export.backend import Array
from u2export.metrics import MIN_CONTRAST, THRESHOLD, Difference, Judgement
from u2export.parity.budgets import Budget
from u2export.parity.report import CandidateResult, CaseResult, Report
from u2export.parity.shown import Shown
from u2export.parity.words import fault, printable, why

SIDE = 320  # pixels of a shown picture's longer side
LEAST = 64  # pixels of its shorter side, so that a line of pixels is still seen
# Colours of the heat map from no difference to 1, ever brighter: they can be told apart in gray.
_HEAT = ((0, 0, 0), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191))
# The figures of a picture: field of `Difference`, name, what it is, format.
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
    """A row of a candidate's table, as text; `over` are the columns that are over their bound."""

    name: str
    means: str
    worst: str
    whole: str
    bound: str
    over: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """A candidate, a case or a shown picture with what became of it."""

    state: str
    candidate: CandidateResult | None = None
    case: CaseResult | None = None
    fault: str = ""
    figures: tuple[_Figure, ...] = ()


@dataclass(frozen=True)
class _Panel:
    title: str
    source: str


@dataclass(frozen=True)
class _Exhibit:
    shown: Shown
    row: _Row
    panels: tuple[_Panel, ...]
    apart: str


def page(report: Report, shown: Sequence[Shown]) -> str:
    """Write the page: verdict, candidates, pictures, cases, and what was run where.

    Args:
        report: what was found.
        shown: cases to be looked at, in this order.
    """
    text = _template().render(
        report=report,
        why=why(report),
        candidates=[_card(one) for one in report.candidates],
        cases=_rows(report),
        exhibits=[_exhibit(one, report) for one in shown],
        heat=", ".join(f"rgb{colour}" for colour in _HEAT),
    )
    return printable(text)


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("u2export.parity").joinpath("report.html.j2")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _card(one: CandidateResult) -> _Row:
    state = "missing" if one.missing else ("passed" if one.passed else "failed")
    return _Row(state, one, one.worst, fault(one), _figures(one))


def _rows(report: Report) -> list[_Row]:
    """Every case of every candidate: failed ones, passed ones, skipped ones."""
    rows = [_Row(_state(case), one, case) for one in report.candidates for case in one.cases]
    return sorted(rows, key=lambda row: ("failed", "passed", "skipped").index(row.state))


def _state(case: CaseResult) -> str:
    if not case.judged:
        return "skipped"
    return "passed" if case.passed else "failed"


# --- figures -----------------------------------------------------------------------------------


def _figures(one: CandidateResult) -> tuple[_Figure, ...]:
    if one.worst is None or one.worst.difference is None:
        return ()
    found, whole, bounds = one.worst.difference, _whole(one.judgement), _bounds(one.budget)
    subject = (one.worst.contrast or 0.0) >= MIN_CONTRAST
    return tuple(
        _Figure(
            name=name,
            means=means,
            worst=_worst(found, field, form, subject),
            whole=whole.get(field, ""),
            bound=bounds.get(field, "no bound"),
            over=_over(one, field),
        )
        for field, name, means, form in _FIGURES
    )


def _worst(found: Difference, field: str, form: str, subject: bool) -> str:
    text = format(getattr(found, field), form)
    judged = subject or not field.startswith(("mask", "boundary"))
    return text if judged else f"{text} (no subject: not judged)"


def _whole(found: Judgement | None) -> dict[str, str]:
    """Figures over all pictures, by name."""
    if found is None:
        return {}
    figures = {"raw_max": f"{found.raw_max:.3g}", "raw_mean": f"{found.raw_mean:.3g}"}
    if found.mask_mae is not None:
        figures["mask_mae"] = f"{found.mask_mae:.3g}"
    if found.mask_iou is not None and found.worst_iou is not None:
        figures["mask_iou"] = f"{found.mask_iou:.4f}, worst {found.worst_iou:.4f}"
    return figures


def _bounds(budget: Budget) -> dict[str, str]:
    """What is allowed, by the figure's name."""
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


def _over(one: CandidateResult, field: str) -> tuple[str, ...]:
    """Of `worst` and `whole`, those that the report's reasons say are over the bound."""
    names = (field, "worst_iou") if field == "mask_iou" else (field,)
    worst = one.worst.reasons if one.worst and not one.worst.passed else ()
    given = {"worst": " ".join(worst), "whole": " ".join(one.reasons)}
    return tuple(column for column, text in given.items() if any(name in text for name in names))


# --- pictures ----------------------------------------------------------------------------------


def _exhibit(shown: Shown, report: Report) -> _Exhibit:
    box = box_of(shown.picture)
    panels = [
        _Panel("picture", uri(Image.fromarray(shown.picture), box)),
        _Panel("reference's mask", uri(gray(shown.reference), box)),
        _Panel("candidate's mask", uri(gray(shown.found), box)),
    ]
    row = _found(shown, report)
    if shown.reference.shape != shown.found.shape:
        return _Exhibit(shown, row, tuple(panels), "the masks are of different sizes")
    panels.append(_Panel("difference", uri(heat_map(shown.reference, shown.found, box), box)))
    return _Exhibit(shown, row, tuple(panels), _apart(shown))


def _found(shown: Shown, report: Report) -> _Row:
    """What the report says of a shown case; nothing where it does not know it."""
    for one in report.candidates:
        for case in one.cases:
            if (one.party.name, case.name) == (shown.candidate, shown.case):
                return _Row(_state(case), one, case)
    return _Row("not in the report")


def _apart(shown: Shown) -> str:
    apart = np.abs(shown.reference - shown.found)
    flipped = ((shown.reference >= THRESHOLD) != (shown.found >= THRESHOLD)).mean()
    return (
        f"The masks differ by {apart.max():.3g} at most and {apart.mean():.3g} on average; "
        f"{flipped:.3%} of the pixels changed sides."
    )


def box_of(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height at which a picture and its masks are shown: pixels, its proportions."""
    height, width = picture.shape[:2]
    scale = SIDE / max(width, height)
    return max(LEAST, round(width * scale)), max(LEAST, round(height * scale))


def gray(mask: Array) -> Image.Image:
    """Draw a mask in [0,1], (S,S), as it is."""
    return Image.fromarray(np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8))


def heat_map(reference: Array, found: Array, box: tuple[int, int]) -> Image.Image:
    """Draw where two masks differ.

    Args:
        reference: (S,S) float32 in [0,1].
        found: the same.
        box: width and height of the drawing, pixels.

    Returns:
        Black where they are equal; the colour goes by the square root of the difference, so that
        small ones are seen too. Where S is reduced, the largest difference nearby is what is drawn.
    """
    level = gray(np.sqrt(np.abs(reference - found)))
    grain = math.ceil(max(level.width / box[0], level.height / box[1])) | 1  # odd, as it must be
    level = level.filter(ImageFilter.MaxFilter(grain)).resize(box, Image.Resampling.NEAREST)
    steps = np.linspace(0, 255, len(_HEAT))
    channels = [np.interp(np.asarray(level), steps, values) for values in zip(*_HEAT, strict=True)]
    return Image.fromarray(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))


def uri(image: Image.Image, box: tuple[int, int]) -> str:
    """The picture at that width and height, pixels, as an address that holds it."""
    out = io.BytesIO()
    image.resize(box, Image.Resampling.BOX, reducing_gap=2.0).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
