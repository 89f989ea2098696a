"""A bisection for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.table import Table

from u2export.parity.bisect import Bisection, ModuleError
from u2export.reports.table import render_tables

_BAR_RANGE = (-7.0, 1.0)  # logarithms of the relative error at which a bar is empty and full
_BAR_WIDTH = 16


def format_bisection(bisection: Bisection) -> str:
    """Write the error's growth, module by module, then the verdict."""
    headings = ("module", "error max", "error mean", "growth", "saliency max", "mean", "mask IoU")
    table = Table(*headings)
    for module in bisection.modules:
        table.add_row(*_row(module))
    return "\n".join([render_tables(table), *bisection_verdict(bisection)])


def _row(module: ModuleError) -> list[str]:
    errors = [f"{module.relative_max:.2g}", f"{module.relative_mean:.2g}"]
    row = [module.name, *errors, _bar(module.relative_max)]
    effect = module.difference
    if effect is None:
        return row
    return [*row, f"{effect.raw_max:.2g}", f"{effect.raw_mean:.2g}", f"{effect.mask_iou:.4f}"]


def _bar(error: float) -> str:
    """A bar as long as the error's logarithm."""
    if error <= 0:
        return ""
    low, high = _BAR_RANGE
    share = (np.log10(error) - low) / (high - low) if np.isfinite(error) else 1.0
    return "#" * round(_BAR_WIDTH * float(np.clip(share, 0, 1)))


def bisection_verdict(bisection: Bisection) -> Iterator[str]:
    """Describe the result, line by line."""
    yield f"first over the budget: {bisection.culprit or 'no module'}"
    if bisection.over and not bisection.culprit:
        yield "yet the file as it runs is over the budget: what is wrong lies in none of these"
    if bisection.inputs:
        yield f"fed by, largest error first: {', '.join(bisection.inputs)}"
    for name, reason in bisection.unmatched:
        yield f"not compared: {name}: {reason}"
    yield f"reading the tensors out changed the saliency by {bisection.agrees:.2g}"
