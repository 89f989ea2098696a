"""Pictures written to files: fast, whole or not at all, with what the original said of itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from PIL import Image

from u2export import png, webp
from u2export.errors import InputError
from u2export.places import STANDARD, part_of
from u2export.spec import Format

FAST = 1  # the PNG level that our own writer has; the others are Pillow's
_USUAL = {Format.WEBP: 80, Format.JPG: 90}
LOSSLESS = 100  # the quality of WebP that keeps every value
_JPEG_EXIF = 65_533  # bytes that fit into a JPEG's segment; more is left out
_SIDES = {
    Format.WEBP: 16383,
    Format.JPG: 65500,
}  # pixels: the most they, and libjpeg, have room for

Turn: TypeAlias = AbstractContextManager[object]
Ready: TypeAlias = "Image.Image | webp.Parts"


@dataclass(frozen=True)
class Encoding:
    """How results are written.

    Attributes:
        format: png keeps every value; webp and jpg do not, unless quality is 100 for webp.
        quality: of webp and jpg, 1 to 100; None is 80 for webp, as in Pillow, and 90 for jpg.
        png_level: of compression, 0 (none) to 9; 1 is by far the fastest, and larger ones make
            files of photographs little smaller.
    """

    format: Format = Format.PNG
    quality: int | None = None
    png_level: int = FAST

    def __post_init__(self) -> None:
        """Refuse what no format takes.

        Raises:
            InputError: quality or level is out of its range.
        """
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise InputError(f"quality must be 1 to 100, got {self.quality}")
        if not 0 <= self.png_level <= 9:
            raise InputError(f"the PNG level must be 0 to 9, got {self.png_level}")

    @property
    def actual_quality(self) -> int:
        """The quality that was asked for, or that is usual; of webp and jpg."""
        return _USUAL[self.format] if self.quality is None else self.quality


PNG = Encoding()


def check(image: Image.Image, wanted: Encoding) -> None:
    """Make sure that a format has room for a picture.

    Raises:
        InputError: it has not.
    """
    most = _SIDES.get(wanted.format)
    if most is not None and max(image.size) > most:
        raise InputError(
            f"{image.width}x{image.height} pixels are more than {wanted.format}'s {most} a side: "
            "take --format png"
        )


def ready(image: Ready, wanted: Encoding) -> Ready:
    """What `encode` needs of a picture: less than the picture itself, where it can be."""
    apart = wanted.format is Format.WEBP and wanted.actual_quality < LOSSLESS
    if apart and isinstance(image, Image.Image) and image.mode == "RGBA":
        return webp.Parts(image)
    return image


def encode(
    image: Ready,
    file: BinaryIO,
    wanted: Encoding,
    notes: Mapping[str, bytes],
    turn: Turn | None = None,
) -> None:
    """Write a picture into an open file.

    Args:
        image: mode L, RGB or RGBA, no RGBA for JPEG; or what `ready` gave for it and `wanted`.
        file: open for writing.
        wanted: how.
        notes: from `notes_of`.
        turn: held while a cut-out becomes WebP, which takes much room.

    Raises:
        OSError: the file cannot be written.
    """
    own = {"profile": notes.get("icc_profile"), "exif": notes.get("exif")}
    image = ready(image, wanted)
    if isinstance(image, webp.Parts):
        image.write(file, quality=wanted.actual_quality, turn=turn, **own)
    elif wanted.format is Format.PNG:
        if wanted.png_level == FAST:
            png.write(image, file, **own)
        else:
            image.save(file, "PNG", compress_level=wanted.png_level, **notes)
    elif wanted.format is Format.JPG:
        kept = {k: v for k, v in notes.items() if k != "exif" or len(v) <= _JPEG_EXIF}
        image.save(file, "JPEG", quality=wanted.actual_quality, **kept)
    else:
        quality, lossless = wanted.actual_quality, wanted.actual_quality == LOSSLESS
        image.save(file, "WEBP", quality=quality, lossless=lossless, method=0, **notes)


def notes_of(picture: Image.Image) -> dict[str, bytes]:
    """The colour profile and EXIF of a picture that was turned upright, for its result."""
    return {name: picture.info[name] for name in ("icc_profile", "exif") if picture.info.get(name)}


def save(
    image: Ready,
    path: Path,
    wanted: Encoding,
    notes: Mapping[str, bytes],
    turn: Turn | None = None,
) -> None:
    """Write a picture's file, whole or not at all; its folder is made if absent.

    Args:
        image: as for `encode`.
        path: of the file; `-` is standard output.
        wanted: how.
        notes: as for `encode`.
        turn: as for `encode`.

    Raises:
        InputError: the place cannot be written.
    """
    part = part_of(path)
    try:
        if path == STANDARD:
            encode(image, sys.stdout.buffer, wanted, notes, turn)
            sys.stdout.buffer.flush()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                encode(image, file, wanted, notes, turn)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
