"""From a picture file to an upright RGB or RGBA picture."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from u2export.core.requests import MAX_PIXELS, MAX_SIDE
from u2export.errors import InputError
from u2export.images.formats import readable_formats, unreadable_reason
from u2export.system.documents import first_line, open_regular

_TRANSPARENT_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "RGBa"})  # with an RGB profile
_TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)  # of EXIF: width and height are swapped
# A file is not even opened beyond: a GIF's frame takes its memory then.
MAX_PIXELS_OPENED = 1_000_000_000
_PIXELS_IN_ERROR = re.compile(r"\((\d+) pixels\)")  # of Pillow's own limit
_PIXEL_LIMIT_LOCK = threading.Lock()


class DecodedImage(NamedTuple):
    """A decoded picture.

    Attributes:
        picture: upright, mode RGB, or RGBA where it has transparency; perhaps reduced.
        size: (width, height) of the upright picture in pixels, before any reduction.
    """

    picture: Image.Image
    size: tuple[int, int]


def open_image(source: Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture file and turn it upright.

    Args:
        source: a path, or an open binary file.
        max_pixels: larger pictures are refused before they are decoded.

    Returns:
        Mode RGB, or RGBA where the picture has transparency.

    Raises:
        InputError: the file is absent, no picture, truncated, or too large.
    """
    return decode_image(read_header(source, max_pixels=max_pixels)).picture


def check_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
    """Check that a file begins like a picture of an allowed size; quick.

    Raises:
        InputError: the file cannot be read, is no picture, or is too large.
    """
    read_header(path, max_pixels=max_pixels).close()


def read_header(source: Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """Read the header of a picture file; `decode_image` reads the pixels.

    Args:
        source: a path, or an open binary file.
        max_pixels: larger pictures are refused.

    Returns:
        A picture whose size is known, but not its pixels. Its EXIF orientation is not applied yet.

    Raises:
        InputError: the file is absent, no picture, or too large.
    """
    header = open_header(source, max_pixels)
    check_size(header, max_pixels)
    return header


def open_header(
    source: Path | BinaryIO, max_pixels: int = MAX_PIXELS_OPENED
) -> ImageFile.ImageFile:
    """Read the header of a picture file, whatever its sides; see `read_header`.

    Raises:
        InputError: the file is absent, no picture, or has more pixels.
    """
    name = _source_name(source)
    with translate_errors(name, max_pixels), _pixel_limit(max_pixels), ExitStack() as stack:
        file = stack.enter_context(open_regular(source)) if isinstance(source, Path) else source
        try:
            header = Image.open(file, formats=readable_formats())
        except UnidentifiedImageError as error:
            file.seek(0)
            raise InputError(unreadable_reason(file.read(12))) from error
        if isinstance(source, Path):
            header._exclusive_fp = True  # Pillow closes it with the picture
        stack.pop_all()
    header.filename = name  # for the error messages of `decode_image`
    return header


def check_size(header: ImageFile.ImageFile, max_pixels: int) -> None:
    """Check the size of a picture before its pixels are read; close its file where that fails.

    Raises:
        InputError: it is too large.
    """
    name, pixels, side = _source_name(header), header.width * header.height, max(header.size)
    if side > MAX_SIDE:
        header.close()
        raise InputError(f"{name} has a side of {side} pixels, more than the {MAX_SIDE} allowed")
    if pixels > max_pixels:
        header.close()
        raise _too_many_pixels(name, pixels, max_pixels)


def _too_many_pixels(name: str, pixels: int, max_pixels: int) -> InputError:
    return InputError(
        f"{name} has {pixels / 1e6:.1f} million pixels, more than the "
        f"{max_pixels / 1e6:.1f} million allowed: raise --max-pixels to take it"
    )


def decode_image(header: Image.Image, *, min_side: int | None = None) -> DecodedImage:
    """Decode the pixels of a picture, turn it upright, and close its file.

    Args:
        header: from `read_header`.
        min_side: pixels that the shorter side needs. A JPEG is decoded at 1/8, 1/4 or 1/2 of its
            size where that leaves enough. By default at its full size.

    Raises:
        InputError: the file is broken or truncated.
    """
    with header, translate_errors(_source_name(header)):
        width, height = header.size
        if min_side is not None:
            header.draft(None, (min_side, min_side))  # does nothing to formats other than JPEG
        header.load()
        if header.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED_ORIENTATIONS:
            width, height = height, width
        _apply_orientation(header)
        return DecodedImage(_to_rgb(header), (width, height))


def _apply_orientation(image: Image.Image) -> None:
    """Apply the EXIF orientation in place: the caller owns the picture, so no copy is needed."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # the pixels are upright by now; other EXIF values cannot be written back
        image.info.pop("exif", None)


def as_image(picture: object) -> Image.Image:
    """Take what a program has for a picture.

    Args:
        picture: a Pillow image, a path, or uint8 values of shape (H,W), (H,W,1), (H,W,3) or
            (H,W,4).

    Returns:
        Upright, mode RGB, or RGBA where it has transparency.

    Raises:
        InputError: it is none of these, has no pixels, or its file cannot be read.
    """
    if isinstance(picture, (str, os.PathLike)):
        return open_image(Path(picture))
    if isinstance(picture, np.ndarray):
        picture = _image_of(picture)
    if not isinstance(picture, Image.Image):
        raise InputError(
            f"a picture is a Pillow image, a path, or a uint8 array, not {type(picture).__name__}"
        )
    if not picture.width or not picture.height:
        raise InputError(f"a picture of {picture.width}x{picture.height} has no pixels")
    with translate_errors(_source_name(picture)):
        return to_upright(picture)


def _image_of(values: NDArray[Any]) -> Image.Image:
    shape = values.shape[:2] if values.ndim == 3 and values.shape[2] == 1 else values.shape
    channels = shape[2:] in ((), (3,), (4,)) and len(shape) >= 2
    if values.dtype != np.uint8 or not channels:
        raise InputError(
            "an array must be uint8 of shape (H,W), (H,W,1), (H,W,3) or (H,W,4), "
            f"got {values.dtype} {values.shape}"
        )
    if 0 in shape:
        raise InputError(f"a picture of shape {values.shape} has no pixels")
    return Image.fromarray(np.ascontiguousarray(values.reshape(shape)))


def to_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; convert any mode to RGB, or RGBA if it has transparency."""
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB or RGBA; a picture of these modes is returned itself."""
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        image = _to_8_bits(image)
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if mode not in _COLOUR_MODES:
        image.info.pop("icc_profile", None)  # it describes inks or grays
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float pixels to 0..255, by the range that the values suggest."""
    values = np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    values = np.maximum(values, 0)
    largest = float(values.max(initial=0))
    if image.mode.startswith("I;16"):
        scale = 257.0
    elif image.mode == "I":
        scale = 257.0 if largest <= 65535 else largest / 255
    else:
        scales = ((1.0, 1 / 255), (255.0, 1.0), (65535.0, 257.0))  # by the range's end
        scale = next((scale for end, scale in scales if largest <= end), largest / 255)
    return Image.fromarray(round_to_uint8(values / scale))


def round_to_uint8(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Round values to the nearest integers, limited to 0..255."""
    rounded: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def composite_on_white(image: Image.Image) -> Image.Image:
    """Composite a picture with transparency onto white; returns mode RGB."""
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def crop_image(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Crop a picture of any size; Pillow itself refuses large crops as attacks.

    Args:
        image: any mode.
        box: (left, top, right, bottom) in pixels.
    """
    with _pixel_limit(None):
        return image.crop(box)


def _source_name(source: Path | BinaryIO | Image.Image) -> str:
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "the picture"
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "the picture"))


@contextmanager
def translate_errors(name: str, max_pixels: int | None = None) -> Iterator[None]:
    """Turn every error of reading a picture file into an `InputError` of one sentence.

    Args:
        name: what the sentence calls the file.
        max_pixels: Pillow's own limit, where it was set.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"there is no picture at {name}") from error
    except Exception as error:  # decoders raise many kinds of errors for broken files
        pixels = _PIXELS_IN_ERROR.search(str(error))
        if max_pixels and pixels and isinstance(error, Image.DecompressionBombError):
            raise _too_many_pixels(name, int(pixels[1]), max_pixels) from error
        raise InputError(f"{name} cannot be read as a picture: {_error_reason(error)}") from error


def _error_reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "its pixels do not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


class _Limit(int):
    """A number of pixels beyond which Pillow refuses; it would warn there, and refuse at twice."""

    def __rmul__(self, factor: int) -> int:
        return int(self)


@contextmanager
def _pixel_limit(pixels: int | None) -> Iterator[None]:
    """Set Pillow's own limit; None for none."""
    with _PIXEL_LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if pixels is None else _Limit(pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
