"""Verification of an artifact's bytes and its certificate; nothing runs."""

from __future__ import annotations

from pathlib import Path

from u2export.core import registry
from u2export.core.artifact import manifest_path
from u2export.errors import DependencyError, InputError, ParityError
from u2export.parity.certificate import Certificate, read_certificate
from u2export.system.documents import is_file, is_there
from u2export.system.progress import say


def verify_artifact(path: Path) -> Certificate:
    """Verify an artifact's bytes and its certificate, without running it.

    Raises:
        InputError: there is no such file.
        ArtifactError: it was changed, or the certificate is for other bytes or contradicts itself;
            or the file says other facts inside than its manifest.
        ParityError: it was never checked.
    """
    try:
        artifact = registry.open_artifact(path)
    except InputError as error:
        if not is_file(path) or is_there(manifest_path(path)):
            raise
        raise ParityError(
            f"{path} carries no certificate: u2export did not make it, or it lost its manifest"
        ) from error
    try:
        registry.check_companions(artifact)
        registry.check_embedded(artifact)
    except DependencyError as error:
        say(f"what {path} says inside was not compared with its manifest: {error}")
    return read_certificate(artifact)


def format_certificate(path: Path, certificate: Certificate) -> str:
    """Describe a certificate for people."""
    figures = certificate.judgement
    return (
        f"{path} is whole, and passed on {certificate.created} against {certificate.reference} in "
        f"{certificate.cases} cases: raw max {figures.raw_max:.2g}, "
        f"mask MAE {figures.mask_mae:.2g}, IoU {figures.mask_iou:.4f} "
        f"(worst {figures.worst_iou:.4f}); {certificate.ran}"
    )
