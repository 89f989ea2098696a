"""Verification of an artifact's bytes and its certificate; nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from u2export.compare.budgets import BUDGETS, Budget, budget_excess, budget_for, looser_bounds
from u2export.core import registry
from u2export.core.artifact import manifest_path
from u2export.core.enums import Precision
from u2export.errors import InputError, ParityError
from u2export.parity.certificate import Certificate, read_certificate
from u2export.system.documents import is_file, is_there


def verify_artifact(path: Path, budgets: Mapping[Precision, Budget] = BUDGETS) -> Certificate:
    """Verify an artifact's bytes and its certificate, without running it.

    The verdict is not taken from the certificate: its figures are held to the budget of the
    precision that the file's weights have.

    Args:
        path: the model file.
        budgets: by precision; the built-in ones unless the user named others.

    Raises:
        InputError: there is no such file.
        ArtifactError: it was changed, or is not what it says; or the certificate is for other
            bytes or contradicts itself.
        DependencyError: what reads the file is not installed.
        ParityError: it was never checked, or its figures exceed the budgets.
    """
    try:
        artifact = registry.with_stored_precision(registry.open_artifact(path))
    except InputError as error:
        if not is_file(path) or is_there(manifest_path(path)):
            raise
        raise ParityError(
            f"{path} carries no certificate: u2export did not make it, or it lost its manifest"
        ) from error
    certificate = read_certificate(artifact)
    if excess := budget_excess(certificate.judgement, budget_for(artifact, budgets)):
        if budgets != BUDGETS:
            raise ParityError(f"{path} exceeds the given budgets: {excess}")
        passed_by = certificate.budgets or "budgets of its own"
        raise ParityError(
            f"{path} passed only by {passed_by}: {excess}; --budget FILE holds it to that file's"
        )
    return certificate


def format_certificate(path: Path, certificate: Certificate) -> str:
    """Describe a certificate for people."""
    figures = certificate.judgement
    bounds = certificate.precision and looser_bounds(certificate.budget, certificate.precision)
    looser = bounds and f"{path} passed by looser budgets: {bounds}\n"
    kinds = ", ".join(f"{count} {kind}" for kind, count in certificate.kinds.items())
    weights = f" (weights {certificate.weights[:12]})" if certificate.weights else ""
    return (
        f"{looser}{path} is whole, and passed on {certificate.created} against "
        f"{certificate.reference}{weights} in {certificate.cases} cases"
        f"{f' ({kinds})' if kinds else ''} by the budget of {certificate.precision or 'its kind'}"
        f"{f' in {certificate.budgets}' if certificate.budgets else ''}: "
        f"raw max {figures.raw_max:.2g}, mask MAE {figures.mask_mae:.2g}, "
        f"IoU {figures.mask_iou:.4f} (worst {figures.worst_iou:.4f}); {certificate.ran}"
    )
