"""Masks at a picture's full size whose edges follow the picture, in bounded time and memory.

What is costly is done at a working size of at most `WORKING` pixels a side, whatever the picture's;
at full size only products and sums are left, a band of rows at a time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export import pipeline
from u2export.backend import Array
from u2export.errors import DependencyError, InputError

Values = NDArray[np.floating]
Box = Callable[[Values], Values]
WORKING = 1024  # pixels, the longer side
# of the longer side: the grid of a network is 1/320 of it, and its blur a few of these
RADIUS = 1 / 64
SMOOTH = 1e-4  # added to a window's variance: about the noise of a photograph, (0.01 of white)^2
_TINY = 1e-9  # of a variance: nothing changes
TOLD = 0.5  # of how a mask changes: colours that explain so much are followed wholly
SURE = 0.95  # a mask's value from which a pixel needs no matting, and below 1 - which


def guided(picture: Image.Image, stretched: Array) -> Image.Image:
    """Enlarge a mask so that its edges follow the picture's.

    Within each small window the mask is taken as a linear function of the picture's colours. Where
    these explain less than half of how the mask changes, it is to that extent enlarged as it is.

    Args:
        picture: upright, mode RGB.
        stretched: (H,W) float32 in [0,1], of any size.

    Returns:
        Mode L, of the picture's size; 255 is subject.

    Raises:
        DependencyError: SciPy is not installed.

    Source:
        K. He, J. Sun, X. Tang, Guided Image Filtering, ECCV 2010 (colour guidance); K. He, J. Sun,
        Fast Guided Filter, arXiv:1505.00996 (coefficients at a smaller size).
    """
    small = _small(picture)
    mask = _resized(stretched, small.size)
    radius = max(1, round(RADIUS * max(small.size)))
    return _followed(picture, small, mask, radius)


def matted(picture: Image.Image, stretched: Array) -> Image.Image:
    """Find anew, from the picture's colours, what the mask is unsure of: hair, fur, glass.

    Args:
        picture: upright, mode RGB.
        stretched: (H,W) float32 in [0,1], of any size.

    Returns:
        Mode L, of the picture's size; 255 is subject.

    Raises:
        DependencyError: pymatting is not installed.
        InputError: the matting does not converge on this picture.

    Source:
        A. Levin, D. Lischinski, Y. Weiss, A Closed-Form Solution to Natural Image Matting, CVPR
        2006, as pymatting has it.
    """
    matting = require("pymatting", "matting")
    small = _small(picture)
    mask = _resized(guided_map(small, stretched), small.size)
    trimap = np.full(mask.shape, 0.5)
    box = _box(max(1, round(RADIUS * max(small.size) / 2)))
    near = box(mask)  # a pixel is sure where all that is around it is
    trimap[near > SURE], trimap[near < 1 - SURE] = 1, 0
    if not (trimap == 0).any() or not (trimap == 1).any():
        return pipeline.enlarge(mask, picture.size)
    colours = np.asarray(small, np.float64) / 255
    try:
        alpha = np.asarray(matting.estimate_alpha_cf(colours, trimap), np.float32)
    except ValueError as error:
        raise InputError(f"matting finds no solution ({error}): take --refine guided") from error
    return _followed(picture, small, alpha, 1)


def guided_map(small: Image.Image, stretched: Array) -> Array:
    """The mask of a small picture as `guided` has it, in [0,1]."""
    found: Array = np.asarray(guided(small, stretched), np.float32) / np.float32(255)
    return found


def decontaminated(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Take the ground's colour out of the subject's soft edges.

    Args:
        picture: upright, mode RGB.
        mask: mode L, of the picture's size.

    Returns:
        Mode RGB: the subject's own colours.

    Raises:
        DependencyError: pymatting is not installed.

    Source:
        T. Germer et al., Fast Multi-Level Foreground Estimation, ICPR 2020, as pymatting has it.
    """
    matting = require("pymatting", "matting")
    small = _small(picture)
    colours = np.asarray(small, np.float64) / 255
    alpha = np.asarray(mask.resize(small.size, Image.Resampling.BOX), np.float64) / 255
    own = matting.estimate_foreground_ml(colours, alpha)
    change = np.asarray(255 * (own - colours), np.float32)
    result = np.empty((picture.height, picture.width, 3), np.uint8)
    channels = [
        pipeline.bands(np.ascontiguousarray(one), picture.size) for one in change.transpose(2, 0, 1)
    ]
    for rows, values in _together(channels):
        there = np.asarray(picture.crop((0, rows.start, picture.width, rows.stop)), np.float32)
        for channel, added in enumerate(values):
            np.clip(np.rint(there[..., channel] + added), 0, 255, out=added)
            result[rows, :, channel] = added
    return Image.fromarray(result)


def _followed(picture: Image.Image, small: Image.Image, mask: Array, radius: int) -> Image.Image:
    """Bring a mask of the small picture to the full size along the picture's colours."""
    terms = _terms(np.asarray(small, np.float32) / np.float32(255), mask, _box(radius))
    result = np.empty((picture.height, picture.width), np.uint8)
    for rows, (*slopes, offset) in _together([pipeline.bands(t, picture.size) for t in terms]):
        colours = np.asarray(picture.crop((0, rows.start, picture.width, rows.stop)))
        values = 255 * offset
        for channel, slope in enumerate(slopes):
            values += slope * colours[..., channel]  # of 255: the offset's scale too
        np.clip(np.rint(values), 0, 255, out=values)
        result[rows] = values
    return Image.fromarray(result)


def _terms(colours: Values, mask: Values, box: Box) -> list[Array]:
    """The slopes by channel, and the offset, of the mask as a linear function of the colours.

    Where it explains little of the mask's variance, the mask itself takes its place.
    """
    # In gray pictures the channels are all but the same: what is left of a difference of products
    # of them needs more digits than float32 has.
    channels = [np.ascontiguousarray(one, np.float64) for one in colours.transpose(2, 0, 1)]
    mask = mask.astype(np.float64)
    means, mean = [box(one) for one in channels], box(mask)
    with_mask = [box(one * mask) - m * mean for one, m in zip(channels, means, strict=True)]
    changes = box(mask * mask) - mean * mean

    def spread(a: int, b: int) -> Values:
        shared: Values = box(channels[a] * channels[b]) - means[a] * means[b]
        return shared + SMOOTH if a == b else shared

    rr, rg, rb = spread(0, 0), spread(0, 1), spread(0, 2)
    gg, gb, bb = spread(1, 1), spread(1, 2), spread(2, 2)
    # the inverse of a symmetric 3x3 matrix, by its minors
    minors = {
        (0, 0): gg * bb - gb * gb,
        (0, 1): rb * gb - rg * bb,
        (0, 2): rg * gb - rb * gg,
        (1, 1): rr * bb - rb * rb,
        (1, 2): rb * rg - rr * gb,
        (2, 2): rr * gg - rg * rg,
    }
    whole = rr * minors[0, 0] + rg * minors[0, 1] + rb * minors[0, 2]
    slopes = []
    for row in range(3):
        total = sum(minors[min(row, k), max(row, k)] * with_mask[k] for k in range(3))
        slopes.append(total / whole)
    offset = mean - sum(s * m for s, m in zip(slopes, means, strict=True))
    told = np.add.reduce([s * c for s, c in zip(slopes, with_mask, strict=True)])
    # where colours tell little of how the mask changes, the mask stays as it is
    trust = np.clip(box(told) / np.maximum(box(changes), _TINY) / TOLD, 0, 1)
    slopes, offset = [trust * box(one) for one in slopes], trust * box(offset) + (1 - trust) * mask
    return [np.ascontiguousarray(one, np.float32) for one in (*slopes, offset)]


def _together(
    streams: list[Iterator[tuple[slice, Array]]],
) -> Iterator[tuple[slice, list[Array]]]:
    """Bands of several maps of one size, side by side."""
    for parts in zip(*streams, strict=True):
        yield parts[0][0], [values for _, values in parts]


def _small(picture: Image.Image) -> Image.Image:
    share = min(1.0, WORKING / max(picture.size))
    size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
    return picture.resize(size, Image.Resampling.BOX, reducing_gap=2.0) if share < 1 else picture


def _resized(values: Array, size: tuple[int, int]) -> Array:
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def _box(radius: int) -> Box:
    """A function that gives the mean over a square window around each pixel."""
    ndimage = require("scipy.ndimage", "refine")

    def mean(values: Values) -> Values:
        found: Values = ndimage.uniform_filter(values, 2 * radius + 1, mode="nearest")
        return found

    return mean


def require(package: str, extra: str) -> Any:
    """Import a package that only some installations have.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DependencyError(
            f"this needs {package.partition('.')[0]}, which is not installed: "
            f"pip install 'u2export[{extra}]'"
        ) from error
