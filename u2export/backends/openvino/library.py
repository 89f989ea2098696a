"""The OpenVINO library: its import, its names for devices and precisions, its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.core.enums import Device, Precision
from u2export.errors import ArtifactError, ExportError
from u2export.system import lazy_import
from u2export.system.documents import is_file

if TYPE_CHECKING:
    import openvino as ov
else:  # Nothing here uses OpenVINO's converter, which takes most of the import's time.
    ov = lazy_import.import_without("openvino", "openvino.tools.ovc", "convert_model")

__all__ = [
    "DEVICES",
    "PRECISION_HINTS",
    "VERSION",
    "WEIGHTS_HASH_KEY",
    "error_reason",
    "ov",
    "read_model",
    "require_weights",
    "translate_errors",
]

VERSION = ov.__version__.split("-")[0]
WEIGHTS_HASH_KEY = "bin_sha256"  # in `Facts.build`
DEVICES = {Device.CPU: "CPU", Device.GPU: "GPU"}
PRECISION_HINTS = {
    Precision.FP32: "f32",
    Precision.FP16: "f16",
    Precision.BF16: "bf16",
    # for the layers that are not quantized: quantized layers run in 8 bits with any hint
    Precision.INT8: "f32",
}


def read_model(path: Path) -> ov.Model:
    """Read an `.xml` with its `.bin`.

    Raises:
        ArtifactError: OpenVINO refuses the file, or the `.bin` is missing.
    """
    require_weights(path)
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO {VERSION} refuses {path}: {error_reason(error)}") from error
    except UnicodeDecodeError as error:  # it quotes bytes of the file that are no text
        raise ArtifactError(f"OpenVINO {VERSION} refuses {path}: it is no text") from error


def require_weights(path: Path) -> None:
    """Make sure that the `.bin` lies beside an `.xml`.

    Raises:
        ArtifactError: it does not.
    """
    if not is_file(path.with_suffix(".bin")):
        raise ArtifactError(f"{path} is incomplete: {path.stem}.bin is missing beside it")


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate what OpenVINO raises while it computes into an `ExportError`."""
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"OpenVINO {VERSION} failed: {error_reason(error)}") from error


def error_reason(error: RuntimeError) -> str:
    """Give the last line of OpenVINO's error; the lines before it name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "it gives no reason"
