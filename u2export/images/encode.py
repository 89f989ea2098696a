"""Results written to files: format, colour profile and EXIF; complete or not at all."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from PIL import Image

from u2export.core.enums import Format
from u2export.errors import InputError
from u2export.images import png, webp
from u2export.images.inputs import STDIO
from u2export.system.files import atomic_file, write_error

FAST_PNG_LEVEL = 1  # the level of our own PNG writer; Pillow writes the other levels
LOSSLESS_QUALITY = 100  # the quality at which WebP keeps every value
_DEFAULT_QUALITY = {Format.WEBP: 80, Format.JPG: 90}
_MAX_SIDE = {Format.WEBP: 16383, Format.JPG: 65500}  # pixels: limits of WebP and of libjpeg
_MAX_JPEG_EXIF_BYTES = 65_533  # in one segment of a JPEG; larger EXIF is dropped
Limiter: TypeAlias = AbstractContextManager[object]
EncodableImage: TypeAlias = "Image.Image | webp.WebpParts"


@dataclass(frozen=True)
class Encoding:
    """How results are encoded.

    Attributes:
        format: png is lossless; webp is lossless at quality 100 only; jpg is lossy.
        quality: of webp and jpg, 1 to 100; None is 80 for webp, as in Pillow, and 90 for jpg.
        png_level: of compression, 0 (none) to 9. Level 1 is by far the fastest. Higher levels make
            files of photographs little smaller.
    """

    format: Format = Format.PNG
    quality: int | None = None
    png_level: int = FAST_PNG_LEVEL

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: quality or level is out of range.
        """
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise InputError(f"quality must be 1 to 100, got {self.quality}")
        if not 0 <= self.png_level <= 9:
            raise InputError(f"the PNG level must be 0 to 9, got {self.png_level}")

    @property
    def actual_quality(self) -> int:
        """The requested quality, or the format's default; of webp and jpg."""
        return _DEFAULT_QUALITY[self.format] if self.quality is None else self.quality


PNG_DEFAULT = Encoding()


def save_image(
    image: EncodableImage,
    path: Path,
    encoding: Encoding,
    metadata: Mapping[str, bytes],
    webp_limiter: Limiter | None = None,
) -> None:
    """Write an image file, complete or not at all; create its folder if absent.

    Args:
        image: as for `encode_image`.
        path: of the file; `-` is standard output.
        encoding: format, quality and level.
        metadata: as for `encode_image`.
        webp_limiter: as for `encode_image`.

    Raises:
        InputError: the path cannot be written.
        OutputError: the disk is full, or standard output.
    """
    try:
        if path == STDIO:
            encode_image(image, sys.stdout.buffer, encoding, metadata, webp_limiter)
            sys.stdout.buffer.flush()
            return
        with atomic_file(path, durable=True) as file:
            encode_image(image, file, encoding, metadata, webp_limiter)
    except OSError as error:
        raise write_error(path, error) from error


def encode_image(
    image: EncodableImage,
    file: BinaryIO,
    encoding: Encoding,
    metadata: Mapping[str, bytes],
    webp_limiter: Limiter | None = None,
) -> None:
    """Write an image into an open file.

    Args:
        image: mode L, RGB or RGBA, no RGBA for JPEG; or the result of `to_encodable`.
        file: open for writing.
        encoding: format, quality and level.
        metadata: from `image_metadata`.
        webp_limiter: held while libwebp compresses a cut-out, which takes much memory.

    Raises:
        OSError: the file cannot be written.
    """
    icc_profile, exif = metadata.get("icc_profile"), metadata.get("exif")
    image = to_encodable(image, encoding)
    if isinstance(image, webp.WebpParts):
        image.write(
            file,
            quality=encoding.actual_quality,
            icc_profile=icc_profile,
            exif=exif,
            limiter=webp_limiter,
        )
    elif encoding.format is Format.PNG and encoding.png_level == FAST_PNG_LEVEL:
        png.write_png(image, file, icc_profile=icc_profile, exif=exif)
    else:
        image.save(file, **_pillow_options(encoding, metadata))


def _pillow_options(encoding: Encoding, metadata: Mapping[str, bytes]) -> dict[str, Any]:
    """The options of Pillow's `Image.save`."""
    if encoding.format is Format.PNG:
        return {"format": "PNG", "compress_level": encoding.png_level, **metadata}
    quality = encoding.actual_quality
    if encoding.format is Format.JPG:
        fitting = {
            name: content
            for name, content in metadata.items()
            if name != "exif" or len(content) <= _MAX_JPEG_EXIF_BYTES
        }
        return {"format": "JPEG", "quality": quality, **fitting}
    lossless = quality == LOSSLESS_QUALITY
    return {"format": "WEBP", "quality": quality, "lossless": lossless, "method": 0, **metadata}


def to_encodable(image: EncodableImage, encoding: Encoding) -> EncodableImage:
    """Keep only what `encode_image` needs of an image; for a lossy WebP that is less memory."""
    splits = encoding.format is Format.WEBP and encoding.actual_quality < LOSSLESS_QUALITY
    if splits and isinstance(image, Image.Image) and image.mode == "RGBA":
        return webp.WebpParts(image)
    return image


def image_metadata(picture: Image.Image) -> dict[str, bytes]:
    """The colour profile and EXIF of an upright picture, for its result."""
    return {name: picture.info[name] for name in ("icc_profile", "exif") if picture.info.get(name)}


def check_size_limits(image: Image.Image, encoding: Encoding) -> None:
    """Check that a format can hold an image of this size.

    Raises:
        InputError: a side is too long.
    """
    max_side = _MAX_SIDE.get(encoding.format)
    if max_side is not None and max(image.size) > max_side:
        raise InputError(
            f"{image.width}x{image.height} pixels are more than {encoding.format}'s {max_side} a "
            "side: take --format png"
        )
