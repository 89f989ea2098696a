"""u2export: U²-Net from PyTorch to the runtime it will live in, with proof that nothing was lost.

Example:
    >>> import u2export
    >>> from PIL import Image
    >>> segment = u2export.load("exported/u2netp-fp32.onnx")
    >>> segment(Image.open("photo.jpg")).save("mask.png")
"""

from u2export.errors import (
    ArtifactError,
    DependencyError,
    ExportError,
    InputError,
    ParityError,
    U2ExportError,
)
from u2export.run import Segmenter, load

__all__ = [
    "ArtifactError",
    "DependencyError",
    "ExportError",
    "InputError",
    "ParityError",
    "Segmenter",
    "U2ExportError",
    "load",
]
