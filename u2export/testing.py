"""Parity as an assertion, for other people's tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from u2export import judging
from u2export.errors import InputError
from u2export.parity.report import Report
from u2export.places import pictures_in


def assert_parity(
    candidate: str | Path,
    reference: str | Path = judging.TORCH,
    *,
    pictures: Sequence[str | Path] = (),
    cases: str = "quick",
    budget: str | Path | None = None,
    weights: str | None = None,
    model: str | None = None,
) -> Report:
    """Assert that a model file is the same function as its reference, from picture file to mask.

    Args:
        candidate: the model file.
        reference: another model file, or `torch` for the weights the candidate was made from.
        pictures: your own picture files, or folders of them.
        cases: `quick`, or `all` for more pictures and properties.
        budget: a JSON file of budgets, instead of the built-in ones.
        weights: the weights file, where the reference is `torch`.
        model: for a file u2export did not make: the model it was made from.

    Returns:
        The report.

    Raises:
        AssertionError: it is not; the text is the report.
        U2ExportError: it could not be judged, as `u2export.judging.examine` says.

    Example:
        >>> from u2export.testing import assert_parity
        >>> def test_our_export_keeps_the_mask():
        ...     assert_parity("exported/u2netp-fp16.onnx", pictures=["tests/photos"])
    """
    if cases not in ("quick", "all"):
        raise InputError(f"cases must be quick or all, got {cases!r}")
    question = judging.Question(
        reference=str(reference),
        candidates=(Path(candidate),),
        pictures=tuple(pictures_in([Path(picture) for picture in pictures])),
        thorough=cases == "all",
        budgets=judging.budgets(Path(budget) if budget else None),
        weights=weights,
        model=model,
        command=f"assert_parity({str(candidate)!r}, {str(reference)!r})",
    )
    report, _ = judging.examine(question)
    if not report.passed:
        raise AssertionError(judging.text(report))
    return report
