"""From an upright picture to the network's input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.core.arrays import Array
from u2export.core.enums import Resize
from u2export.core.models import PictureSpec
from u2export.images.decode import composite_on_white

_PILLOW_FILTERS = {
    Resize.BILINEAR: Image.Resampling.BILINEAR,
    Resize.BICUBIC: Image.Resampling.BICUBIC,
    Resize.LANCZOS: Image.Resampling.LANCZOS,
}
# Height over the input's side: a picture at least so tall is read row by row, to save memory.
_ROW_BY_ROW_RATIO = 8
# Decoded side over the input's side: a reduced JPEG at least so large changes no mask; see tests.
_MIN_DECODE_RATIO = 2


def preprocess(picture: Image.Image, spec: PictureSpec) -> Array:
    """Turn an upright picture into the network's input.

    The aspect ratio is not kept: U²-Net was trained on pictures squashed to squares. Values are
    divided by the largest value of the resized picture, then normalised.

    Args:
        picture: from `to_upright`; transparency is composited onto white.
        spec: input size in pixels, resize, and per-channel mean and standard deviation.

    Returns:
        (1, 3, size, size) float32, channels R, G, B; values lie between about -2.1 and 2.6.

    Source:
        xuebinqin/U-2-Net data_loader.py, RescaleT and ToTensorLab(flag=0).
    """
    return normalise(resize_square(composite_on_white(picture), spec), spec)


def min_decode_side(spec: PictureSpec) -> int | None:
    """How many pixels a side the decoder must give; None where it must give all of them.

    The authors' resize samples single pixels of the full picture. Pillow's filters take the means
    of many pixels, and a reduced picture has nearly the same means.
    """
    return None if spec.resize is Resize.AUTHORS else _MIN_DECODE_RATIO * spec.size


def normalise(square: Array, spec: PictureSpec) -> Array:
    """Scale a resized picture as the network expects it: the second half of `preprocess`.

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


def resize_square(picture: Image.Image, spec: PictureSpec) -> Array:
    """Resize an opaque picture to (size, size, 3) float32, values 0 to 255."""
    if spec.resize is Resize.AUTHORS:
        if picture.height < _ROW_BY_ROW_RATIO * spec.size:
            return resize_bilinear(np.asarray(picture), spec.size, spec.size)
        old_shape = (picture.height, picture.width)
        return _interpolate(partial(_row_pairs, picture), old_shape, (spec.size, spec.size))
    resized = picture.resize((spec.size, spec.size), _PILLOW_FILTERS[spec.resize])
    return np.asarray(resized, np.float32).copy()


def resize_bilinear(pixels: NDArray[np.uint8], height: int, width: int) -> Array:
    """Resize bilinearly with half-pixel centres, repeated edges, and no anti-aliasing.

    Args:
        pixels: (H,W,C) uint8.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        (height,width,C) float32 on the scale of the input.

    Source:
        The published masks were made with scikit-image's resize, before it smoothed the picture
        first. OpenCV's INTER_LINEAR computes the same.
    """

    def row_pairs(tops: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.uint8]:
        rows = np.stack([tops, np.minimum(tops + 1, len(pixels) - 1)], axis=1)
        return pixels.take(rows, axis=0).take(columns, axis=2)

    return _interpolate(row_pairs, pixels.shape[:2], (height, width))


def _interpolate(
    row_pairs: Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.uint8]],
    old_shape: tuple[int, ...],
    new_shape: tuple[int, int],
) -> Array:
    """Resize bilinearly; the pixels come from a function.

    Args:
        row_pairs: takes indices of rows and of columns. Returns these rows and the rows below, at
            these columns: (rows,2,columns,C).
        old_shape: (height, width) of the source.
        new_shape: (height, width) of the result.
    """
    top, _, y_weights = bilinear_neighbours(old_shape[0], new_shape[0])
    left, right, x_weights = bilinear_neighbours(old_shape[1], new_shape[1])
    corners = row_pairs(top, np.concatenate([left, right]))
    blended = corners[:, :, : new_shape[1]].astype(np.float32)
    blended += (corners[:, :, new_shape[1] :] - blended) * x_weights[:, None]
    above, below = blended[:, 0], blended[:, 1]
    return above + (below - above) * y_weights[:, None, None]


def _row_pairs(
    picture: Image.Image, tops: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """Read pairs of rows at some columns, without an array of all rows."""
    pairs = np.empty((len(tops), 2, len(columns), 3), np.uint8)
    for index, top in enumerate(tops.tolist()):
        rows = np.asarray(picture.crop((0, top, picture.width, min(top + 2, picture.height))))
        pairs[index] = rows.take(columns, axis=1)  # the last row is its own neighbour
    return pairs


def bilinear_neighbours(
    old_length: int, new_length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Which old pixels each new pixel of a row blends, bilinearly with half-pixel centres.

    Args:
        old_length: pixels of the source.
        new_length: pixels of the result.

    Returns:
        (new_length,) index of the first old pixel, (new_length,) index of the second, and
        (new_length,) weight of the second.
    """
    centre = (np.arange(new_length) + 0.5) * (old_length / new_length) - 0.5
    centre = np.clip(centre, 0, old_length - 1)
    first = np.floor(centre).astype(np.intp)
    return first, np.minimum(first + 1, old_length - 1), (centre - first).astype(np.float32)
