"""From the network's saliency map to a mask of the picture's size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from u2export.core.arrays import Array
from u2export.core.models import PictureSpec
from u2export.errors import InputError
from u2export.images.preprocess import bilinear_neighbours

# A smaller range is rounding, not a subject: float32's resolution near 1 is 2^-24, times 16.
FLAT_RANGE = 1e-6
BAND_ROWS = 64  # rows that are computed together: few enough for a processor's cache


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
    return resize_to_mask(stretch_saliency(saliency, spec), size)


def stretch_saliency(saliency: Array, spec: PictureSpec) -> Array:
    """Stretch a saliency map to the range [0,1]: min-max normalisation.

    Args:
        saliency: (H,W) float32 in [0,1], the network's output for one picture.
        spec: says whether the map is inverted.

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
    if high - low <= FLAT_RANGE:
        return np.zeros_like(saliency)
    stretched = (saliency - np.float32(low)) / np.float32(high - low)
    return 1 - stretched if spec.inverted else stretched


def resize_to_mask(stretched: Array, size: tuple[int, int]) -> Image.Image:
    """Resize a stretched saliency map to the picture's size, as a mask.

    Args:
        stretched: (H,W) float32 in [0,1], from `stretch_saliency`.
        size: (width, height) of the picture, in pixels.

    Returns:
        Mode L; 255 is subject.
    """
    mask = np.empty((size[1], size[0]), np.uint8)
    for rows, values in resize_in_bands(stretched * np.float32(255), size):
        values += 0.5
        mask[rows] = values  # none is negative, so the cast to uint8 rounds
    return Image.fromarray(mask)


def resize_in_bands(values: Array, size: tuple[int, int]) -> Iterator[tuple[slice, Array]]:
    """Resize a map bilinearly, one band of rows at a time, to save memory.

    Args:
        values: (H,W) float32.
        size: (width, height) of the result, in pixels.

    Yields:
        The rows of the band, and their values: (rows, width) float32, which the caller may change.
    """
    width, height = size
    shrinks = height < len(values)  # Pillow then takes the means of several rows
    resized = Image.fromarray(values).resize(
        (width, height if shrinks else len(values)), Image.Resampling.BILINEAR
    )
    source = np.asarray(resized)
    above, below, weights = bilinear_neighbours(len(source), height)
    for top in range(0, height, BAND_ROWS):
        rows = slice(top, min(top + BAND_ROWS, height))
        band = source[above[rows]]
        if not shrinks:
            band += (source[below[rows]] - band) * weights[rows, None]
        yield rows, band
