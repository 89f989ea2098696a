"""The parity check as an assertion for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from u2export.errors import InputError
from u2export.images.inputs import image_files
from u2export.parity.check import check_parity
from u2export.parity.report import ParityReport
from u2export.parity.request import TORCH_REFERENCE, ParityRequest, load_budgets
from u2export.parity.text import format_report


def assert_parity(
    candidate: str | Path,
    reference: str | Path = TORCH_REFERENCE,
    *,
    pictures: Sequence[str | Path] = (),
    cases: str = "quick",
    budget: str | Path | None = None,
    weights: str | None = None,
    model: str | None = None,
) -> ParityReport:
    """Assert that a model file is the same function as its reference, from picture file to mask.

    Args:
        candidate: the model file.
        reference: another model file, or `torch` for the weights the candidate was made from.
        pictures: your own picture files, or folders of them.
        cases: `quick`, or `all` for more pictures and properties.
        budget: a JSON file of budgets, instead of the built-in ones.
        weights: the weights file, where the reference is `torch`.
        model: for a file of another tool: the model it was made from.

    Returns:
        The report.

    Raises:
        AssertionError: the model file differs by more than the budget; the text is the report.
        U2ExportError: it could not be checked, as for `u2export.parity.check.check_parity`.

    Examples:
        >>> from u2export.testing import assert_parity
        >>> def test_our_export_keeps_the_mask():
        ...     assert_parity("exported/u2netp-fp16.onnx", pictures=["tests/photos"])
    """
    if cases not in ("quick", "all"):
        raise InputError(f"cases must be quick or all, got {cases!r}")
    request = ParityRequest(
        reference=str(reference),
        candidates=(Path(candidate),),
        pictures=tuple(image_files([Path(picture) for picture in pictures])),
        thorough=cases == "all",
        budgets=load_budgets(Path(budget) if budget else None),
        weights=weights,
        model=model,
        command=f"assert_parity({str(candidate)!r}, {str(reference)!r})",
    )
    report, _ = check_parity(request)
    if not report.passed:
        raise AssertionError(format_report(report))
    return report
