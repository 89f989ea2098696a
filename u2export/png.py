"""PNG files written fast: one filter for all rows, and the quickest deflate there is.

Writers that try five filters for each row take most of the time that a large cut-out takes. Taking
off the row above serves both masks (which are smooth) and photographs, and costs one subtraction.

Source:
    PNG (Portable Network Graphics) Specification, third edition, W3C 2025: chunks, filter type 2.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

deflate: Any = zlib
with suppress(ImportError):  # not every kind of processor has it; zlib's files are as good
    from isal import isal_zlib as deflate

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {"L": 0, "RGB": 2, "RGBA": 6}
_BITS = 8
_ABOVE = 2  # the filter: each byte less the one above it
_BAND = 64  # rows at a time, few enough for a processor's cache
_LEVEL = 1  # of compression


def write(
    image: Image.Image, file: BinaryIO, *, profile: bytes | None = None, exif: bytes | None = None
) -> None:
    """Write a picture as PNG.

    Args:
        image: mode L, RGB or RGBA.
        file: open for writing.
        profile: an ICC profile.
        exif: with or without its leading `Exif` mark.

    Raises:
        OSError: the file cannot be written.
    """
    kind = _COLOUR_TYPES[image.mode]
    file.write(SIGNATURE)
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", *image.size, _BITS, kind, 0, 0, 0))
    if profile:
        _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    if exif:
        _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    packer = deflate.compressobj(_LEVEL)
    for rows in _filtered(image):
        _chunk(file, b"IDAT", packer.compress(rows))
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _filtered(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    """Bands of rows: a byte that names the filter, then the differences from the rows above."""
    width = image.width * len(image.getbands())
    rows = np.zeros((_BAND + 1, width), np.uint8)  # the first is the one above the band
    out = np.full((_BAND, width + 1), _ABOVE, np.uint8)
    for top in range(0, image.height, _BAND):
        bottom = min(top + _BAND, image.height)
        count = bottom - top
        band = np.asarray(image.crop((0, top, image.width, bottom)))
        rows[1 : count + 1] = band.reshape(count, width)
        np.subtract(rows[1 : count + 1], rows[:count], out=out[:count, 1:])
        rows[0] = rows[count]
        yield out[:count]


def _chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    if not content and name == b"IDAT":
        return
    file.write(struct.pack(">I", len(content)))
    file.write(name)
    file.write(content)
    file.write(struct.pack(">I", deflate.crc32(content, deflate.crc32(name))))
