"""The one way from a picture to the network's input and from its output to a mask.

NumPy and Pillow only; every runner shares it. The rules:

* Orientation from EXIF is applied. Animations give their first frame.
* Transparent pictures are composited onto white, as viewers show them; palettes and every other
  colour model are converted to RGB by Pillow.
* 16-bit values are divided by 257. Wider integers and floats are taken as [0,1], 8-bit or 16-bit
  by their largest value (1, 255 or 65535 at most), and beyond that scaled by it; negative and
  undefined values count as 0.
* The square input is resized as `Resize` says, divided by its own largest value (a black picture
  stays 0), then mean and standard deviation are applied per channel.
* The saliency is stretched so that its smallest value is 0 and its largest 1; a map whose values
  differ by no more than `FLAT` has no subject and gives zeros. The mask comes back to the
  picture's size bilinearly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from u2export.backend import Array
from u2export.errors import InputError
from u2export.spec import MAX_PIXELS, PictureSpec, Resize

# Below float32's resolution of a map near 1 (2^-24 x 16): such a spread is rounding, not a subject.
FLAT = 1e-6
_FILTERS = {
    Resize.BILINEAR: Image.Resampling.BILINEAR,
    Resize.BICUBIC: Image.Resampling.BICUBIC,
    Resize.LANCZOS: Image.Resampling.LANCZOS,
}
_TRANSPARENT = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_COLOURS = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "RGBa"})  # their profiles are of RGB
_LIMIT = threading.Lock()
_TALL = 8  # times as tall as the input: fewer than all rows are needed then
_BAND = 64  # rows that are made at once: few enough to stay in a processor's cache
_DRAFT = 2  # times the input's side: from there on a reduced JPEG changes no mask; see the tests
_ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF orientations by which width and height change places


def open_picture(source: Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture file and turn it upright.

    Args:
        source: a path, or an open binary file.
        max_pixels: larger pictures are refused before they are decoded.

    Returns:
        Mode RGB, or RGBA where the picture has transparency.

    Raises:
        InputError: there is no such file, it is no picture, it is cut short, or too large.
    """
    return decode(open_header(source, max_pixels=max_pixels)).picture


def check_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
    """Make sure that a file's beginning is that of a picture that may be taken; quick.

    Raises:
        InputError: it cannot be read, is no picture, or is too large.
    """
    open_header(path, max_pixels=max_pixels).close()


def open_header(source: Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the beginning of a picture file; `decode` reads the rest.

    Args:
        source: a path, or an open binary file.
        max_pixels: larger pictures are refused.

    Returns:
        A picture that knows its size (before it is turned upright), and no pixel of it.

    Raises:
        InputError: there is no such file, it is no picture, or too large.
    """
    with _reading(_name(source)), _no_pixel_limit():
        image = Image.open(source)
    image.filename = _name(source)  # for what `decode` may have to say
    pixels = image.width * image.height
    if pixels > max_pixels:
        image.close()
        raise InputError(
            f"{image.filename} has {pixels / 1e6:.1f} million pixels, more than the "
            f"{max_pixels / 1e6:.1f} million allowed: raise --max-pixels to take it"
        )
    return image


class Decoded(NamedTuple):
    """A picture that was read.

    Attributes:
        picture: upright, mode RGB, or RGBA where it has transparency; perhaps reduced.
        size: (width, height) of the upright picture, not reduced.
    """

    picture: Image.Image
    size: tuple[int, int]


def decode(header: Image.Image, *, least: int | None = None) -> Decoded:
    """Read the pixels of a picture whose header was read, turn it upright, and close the file.

    Args:
        header: from `open_header`.
        least: pixels of the shorter side that are enough: a JPEG is then decoded at an eighth, a
            quarter or half of its size where that leaves so many; by default all of them.

    Raises:
        InputError: the file is broken or cut short.
    """
    with header, _reading(_name(header)):
        width, height = header.size
        if least is not None:
            header.draft(None, (least, least))  # other formats than JPEG have no such thing
        header.load()
        if header.getexif().get(ExifTags.Base.Orientation) in _ON_THEIR_SIDE:
            width, height = height, width
        _turn(header)
        return Decoded(_converted(header), (width, height))


def _turn(image: Image.Image) -> None:
    """Apply the EXIF orientation to a picture that is nobody else's, without a copy."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # it is turned, and some of its EXIF has values that cannot be written
        image.info.pop("exif", None)


def cropped(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A part of a picture, however large; Pillow takes a large part for an attack."""
    with _no_pixel_limit():
        return image.crop(box)


def draft_side(spec: PictureSpec) -> int | None:
    """Pixels a side that are enough for the network's input; None where all are needed.

    The authors' resize takes single pixels of the full picture; Pillow's filters take means of
    many, which means of fewer hardly change.
    """
    return None if spec.resize is Resize.AUTHORS else _DRAFT * spec.size


def _name(source: Path | BinaryIO | Image.Image) -> str:
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "the picture"
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "the picture"))


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever goes wrong with a picture file becomes one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"there is no picture at {name}") from error
    except Exception as error:  # decoders of broken files raise whatever they like
        raise InputError(f"{name} cannot be read as a picture: {_reason(error)}") from error


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert any mode to RGB, or RGBA if it has transparency."""
    return _converted(ImageOps.exif_transpose(image))


def _converted(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB or RGBA; what is so already is given as it is."""
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        image = _to_8_bits(image)
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if mode not in _COLOURS:
        image.info.pop("icc_profile", None)  # it was of inks, or of grays
    return image


def opaque(image: Image.Image) -> Image.Image:
    """Composite a picture with transparency onto white; give mode RGB."""
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def preprocess(picture: Image.Image, spec: PictureSpec) -> Array:
    """Turn an upright picture into the network's input.

    The aspect ratio is not kept: U²-Net was trained on pictures squashed to squares.

    Args:
        picture: from `upright`; transparency is composited onto white.
        spec: input size in pixels, resize, and per-channel mean and standard deviation.

    Returns:
        (1, 3, size, size) float32, channels R, G, B; divided by the resized picture's own largest
        value, then normalised, so values lie between about -2.1 and 2.6.

    Source:
        xuebinqin/U-2-Net data_loader.py, RescaleT and ToTensorLab(flag=0).
    """
    return normalise(squash(opaque(picture), spec), spec)


def normalise(square: Array, spec: PictureSpec) -> Array:
    """Scale a squashed picture as the network expects it; the first half of `preprocess` is done.

    Args:
        square: (size, size, 3) float32, values 0 to 255; changed in place.
        spec: per-channel mean and standard deviation.

    Returns:
        (1, 3, size, size) float32, channels R, G, B.
    """
    largest = square.max()
    if largest > 0:
        square /= largest
    square -= np.asarray(spec.mean, np.float32)
    square /= np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(square.transpose(2, 0, 1)[None])


def stretch(saliency: Array, spec: PictureSpec) -> Array:
    """Stretch a saliency map to [0,1].

    Args:
        saliency: (H,W) float32 in [0,1], what the network gave for one picture.
        spec: says whether the map is inverted first.

    Returns:
        (H,W) float32 in [0,1]; zeros where the map is flat.

    Raises:
        InputError: the map holds NaN or infinite values.

    Source:
        xuebinqin/U-2-Net u2net_test.py, normPRED, which divides by zero on a flat map.
    """
    if not np.isfinite(saliency).all():
        raise InputError("the network's output holds NaN or infinite values: it has no mask")
    low, high = float(saliency.min()), float(saliency.max())
    if high - low <= FLAT:
        return np.zeros_like(saliency)
    mask = (saliency - np.float32(low)) / np.float32(high - low)
    return 1 - mask if spec.inverted else mask


def postprocess(saliency: Array, size: tuple[int, int], spec: PictureSpec) -> Image.Image:
    """Turn a saliency map into a mask of the picture's size.

    Args:
        saliency: (H,W) float32 in [0,1].
        size: (width, height) of the picture, in pixels.
        spec: says whether the map is inverted.

    Returns:
        Mode L; 255 is subject.

    Raises:
        InputError: the map holds NaN or infinite values.
    """
    return enlarge(stretch(saliency, spec), size)


def enlarge(stretched: Array, size: tuple[int, int]) -> Image.Image:
    """Bring a stretched map to the picture's size.

    Args:
        stretched: (H,W) float32 in [0,1], from `stretch`.
        size: (width, height) of the picture, in pixels.

    Returns:
        Mode L; 255 is subject.
    """
    mask = np.empty((size[1], size[0]), np.uint8)
    for rows, values in bands(stretched * np.float32(255), size):
        values += 0.5
        mask[rows] = values  # none is negative, so cutting off the fraction rounds
    return Image.fromarray(mask)


def bands(values: Array, size: tuple[int, int]) -> Iterator[tuple[slice, Array]]:
    """Bring a map to another size bilinearly, a band of rows at a time: floats take much room.

    Args:
        values: (H,W) float32.
        size: (width, height) of the result, in pixels.

    Yields:
        Which rows, and what is in them: (rows, width) float32, which may be changed.
    """
    width, height = size
    down = height < len(values)  # then rows become means of several
    wide = Image.fromarray(values).resize(
        (width, height if down else len(values)), Image.Resampling.BILINEAR
    )
    known = np.asarray(wide)
    above, below, share = neighbours(len(known), height)
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        band = known[above[rows]]
        if not down:
            band += (known[below[rows]] - band) * share[rows, None]
        yield rows, band


def cut_out(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Give the picture with the mask as its transparency, times its own where it has one.

    Args:
        picture: upright, RGB or RGBA.
        mask: mode L, of the picture's size.

    Returns:
        Mode RGBA; what is not seen at all has no colour either.
    """
    width, height = picture.size
    cut = np.empty((height, width, 4), np.uint8)
    for top in range(0, height, _BAND):
        box = (0, top, width, min(top + _BAND, height))
        part, seen = picture.crop(box), mask.crop(box)
        if part.mode == "RGBA":
            own = np.asarray(part.getchannel("A"), np.float32)
            seen = Image.fromarray(_round(own * np.asarray(seen) / 255))
        part.putalpha(seen)
        band = cut[top : box[3]]
        band[:] = np.asarray(part)
        whole = band.view(np.uint32)  # a pixel in one number
        whole *= band[..., 3:] > 0
    return Image.frombuffer("RGBA", picture.size, cut, "raw", "RGBA", 0, 1)


def squash(picture: Image.Image, spec: PictureSpec) -> Array:
    """Resize an opaque picture to (size, size, 3) float32, values 0 to 255."""
    if spec.resize is Resize.AUTHORS:
        if picture.height < _TALL * spec.size:
            return resize_plain(np.asarray(picture), spec.size, spec.size)
        shape = (picture.height, picture.width)
        return _resized(partial(_pairs_of_rows, picture), shape, (spec.size, spec.size))
    resized = picture.resize((spec.size, spec.size), _FILTERS[spec.resize])
    return np.asarray(resized, np.float32).copy()


def resize_plain(pixels: NDArray[np.uint8], height: int, width: int) -> Array:
    """Resize bilinearly with half-pixel centres, edges repeated, and no anti-aliasing.

    Args:
        pixels: (H,W,C) uint8.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        (height,width,C) float32 on the scale of the input.

    Source:
        The published masks were made with scikit-image's resize as it was before it smoothed
        first; OpenCV's INTER_LINEAR computes the same.
    """

    def pairs(tops: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.uint8]:
        rows = np.stack([tops, np.minimum(tops + 1, len(pixels) - 1)], axis=1)
        return pixels.take(rows, axis=0).take(columns, axis=2)

    return _resized(pairs, pixels.shape[:2], (height, width))


def _resized(
    pairs: Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.uint8]],
    old: tuple[int, ...],
    new: tuple[int, int],
) -> Array:
    """Resize what gives columns of rows and of those below, (rows,2,columns,C).

    Args:
        pairs: called with indices of rows and of columns.
        old: (height, width) of what there is.
        new: (height, width) of the result.
    """
    top, _, down = neighbours(old[0], new[0])
    left, right, across = neighbours(old[1], new[1])
    corners = pairs(top, np.concatenate([left, right]))
    lefts = corners[:, :, : new[1]].astype(np.float32)
    lefts += (corners[:, :, new[1] :] - lefts) * across[:, None]
    above, below = lefts[:, 0], lefts[:, 1]
    return above + (below - above) * down[:, None, None]


def _pairs_of_rows(
    picture: Image.Image, tops: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """What is in columns of rows and of those below, without the room that all rows would take."""
    found = np.empty((len(tops), 2, len(columns), 3), np.uint8)
    for place, top in enumerate(tops.tolist()):
        rows = np.asarray(picture.crop((0, top, picture.width, min(top + 2, picture.height))))
        found[place] = rows.take(columns, axis=1)  # the last row is its own neighbour
    return found


def neighbours(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Where a row's new pixels come from, bilinearly and with half-pixel centres.

    Args:
        old: pixels that there are.
        new: pixels that are wanted.

    Returns:
        (new,) indices of the two old pixels around each, and (new,) the weight of the second.
    """
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    first = np.floor(centre).astype(np.intp)
    return first, np.minimum(first + 1, old - 1), (centre - first).astype(np.float32)


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    values = np.maximum(values, 0)
    largest = float(values.max(initial=0))
    if image.mode.startswith("I;16"):
        scale = 257.0
    elif image.mode == "I":
        scale = 257.0 if largest <= 65535 else largest / 255
    else:
        ranges = ((1.0, 1 / 255), (255.0, 1.0), (65535.0, 257.0))
        scale = next((by for top, by in ranges if largest <= top), largest / 255)
    return Image.fromarray(_round(values / scale))


def _round(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no picture format that Pillow knows"
    text = str(error) or type(error).__name__
    return text.splitlines()[0]


@contextmanager
def _no_pixel_limit() -> Iterator[None]:
    """Let Pillow open a header of any size; the caller checks the size before decoding."""
    with _LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
