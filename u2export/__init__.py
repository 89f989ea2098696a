"""u2export: U²-Net from PyTorch to the runtime it will live in, with proof that nothing was lost.

Example:
    >>> import u2export
    >>> from PIL import Image
    >>> segment = u2export.load("exported/u2netp-fp32.onnx")
    >>> segment(Image.open("photo.jpg")).save("mask.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from u2export.errors import (
    ArtifactError,
    DependencyError,
    ExportError,
    InputError,
    OutputError,
    ParityError,
    U2ExportError,
)
from u2export.system import telemetry

if TYPE_CHECKING:
    from u2export.inference.segmenter import Segmenter, load

telemetry.switch_off()

__all__ = [
    "ArtifactError",
    "DependencyError",
    "ExportError",
    "InputError",
    "OutputError",
    "ParityError",
    "Segmenter",
    "U2ExportError",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import what opens artifacts when it is first used: the command line's help must be quick."""
    if name in ("Segmenter", "load"):
        from u2export.inference import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
