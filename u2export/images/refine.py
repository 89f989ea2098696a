"""Masks whose edges follow the picture's, and matting.

The costly steps run on a reduced picture, of at most `WORKING_SIDE` pixels a side. At full size
only products and sums remain, computed one band of rows at a time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.core.arrays import Array
from u2export.errors import DependencyError, InputError, pip_command
from u2export.images.postprocess import resize_in_bands, resize_to_mask

WORKING_SIDE = 1024  # pixels, the longer side of the reduced picture
# Radius of a window, of the longer side. A cell of the network's grid is 1/320 of the side, and the
# saliency map is blurred over a few cells.
RADIUS_RATIO = 1 / 64
# Added to the variance of a colour in a window: about the noise of a photograph, 0.01 squared.
VARIANCE_EPSILON = 1e-4
MIN_EXPLAINED = 0.5  # of the mask's variance: colours that explain so much are followed fully
CERTAIN_ALPHA = 0.95  # a mask is certain above this, and below 1 minus this
_MIN_VARIANCE = 1e-9  # avoids a division by zero where the mask is constant
_Values = NDArray[np.floating]
_BoxFilter = Callable[[_Values], _Values]


def refine_guided(picture: Image.Image, stretched: Array) -> Image.Image:
    """Resize a mask so that its edges follow the picture's: a guided filter.

    Within each small window, the mask is fitted as a linear function of the picture's colours.
    Where the colours explain less than half of the mask's variance, the fit is blended with the
    unrefined mask. The less they explain, the more of that mask remains.

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
    reduced = _reduce_picture(picture)
    mask = _resize_map(stretched, reduced.size)
    radius = max(1, round(RADIUS_RATIO * max(reduced.size)))
    return _upsample_guided(picture, reduced, mask, radius)


def refine_matting(picture: Image.Image, stretched: Array) -> Image.Image:
    """Compute the uncertain parts of a mask from the picture's colours: hair, fur, glass.

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
        2006, as implemented by pymatting.
    """
    matting = require_package("pymatting", "matting")
    reduced = _reduce_picture(picture)
    mask = np.asarray(refine_guided(reduced, stretched), np.float32) / np.float32(255)
    trimap = _trimap(mask)
    if not (trimap == 0).any() or not (trimap == 1).any():
        return resize_to_mask(mask, picture.size)
    colours = np.asarray(reduced, np.float64) / 255
    try:
        alpha = np.asarray(matting.estimate_alpha_cf(colours, trimap), np.float32)
    except ValueError as error:
        raise InputError(f"matting finds no solution ({error}): take --refine guided") from error
    return _upsample_guided(picture, reduced, alpha, 1)


def _trimap(mask: Array) -> NDArray[np.float64]:
    """Mark certain pixels as 1 or 0, others as 0.5; all neighbours of a certain one agree."""
    box_mean = _box_filter(max(1, round(RADIUS_RATIO * max(mask.shape) / 2)))
    neighbourhood = box_mean(mask)
    trimap = np.full(mask.shape, 0.5)
    trimap[neighbourhood > CERTAIN_ALPHA], trimap[neighbourhood < 1 - CERTAIN_ALPHA] = 1, 0
    return trimap


def decontaminate(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Remove the background's colour from the subject's soft edges.

    Args:
        picture: upright, mode RGB.
        mask: mode L, of the picture's size.

    Returns:
        Mode RGB: the subject's own colours.

    Raises:
        DependencyError: pymatting is not installed.

    Source:
        T. Germer et al., Fast Multi-Level Foreground Estimation, ICPR 2020, as implemented by
        pymatting.
    """
    matting = require_package("pymatting", "matting")
    reduced = _reduce_picture(picture)
    colours = np.asarray(reduced, np.float64) / 255
    alpha = np.asarray(mask.resize(reduced.size, Image.Resampling.BOX), np.float64) / 255
    foreground = matting.estimate_foreground_ml(colours, alpha)
    change = np.asarray(255 * (foreground - colours), np.float32)
    result = np.empty((picture.height, picture.width, 3), np.uint8)
    for rows, changes in _resize_maps_in_bands(change.transpose(2, 0, 1), picture.size):
        band = np.asarray(picture.crop((0, rows.start, picture.width, rows.stop)), np.float32)
        for channel, values in enumerate(changes):
            np.clip(np.rint(band[..., channel] + values), 0, 255, out=values)
            result[rows, :, channel] = values
    return Image.fromarray(result)


def _upsample_guided(
    picture: Image.Image, reduced: Image.Image, mask: Array, radius: int
) -> Image.Image:
    """Resize a mask of the reduced picture to full size, guided by the picture's colours."""
    colours = np.asarray(reduced, np.float32) / np.float32(255)
    coefficients = _guided_coefficients(colours, mask, _box_filter(radius))
    result = np.empty((picture.height, picture.width), np.uint8)
    for rows, (*slopes, offset) in _resize_maps_in_bands(coefficients, picture.size):
        band = np.asarray(picture.crop((0, rows.start, picture.width, rows.stop)))
        values = 255 * offset
        for channel, slope in enumerate(slopes):
            values += slope * band[..., channel]  # both terms are on the scale of 0 to 255
        np.clip(np.rint(values), 0, 255, out=values)
        result[rows] = values
    return Image.fromarray(result)


def _guided_coefficients(colours: _Values, mask: _Values, box_mean: _BoxFilter) -> list[Array]:
    """Fit the mask as a linear function of the colours, in a window around each pixel.

    Where colours explain little of the mask's variance, the offset is the mask itself.

    Args:
        colours: (H,W,3) in [0,1].
        mask: (H,W) in [0,1].
        box_mean: the mean over a window.

    Returns:
        The slope of each channel, and the offset: four times (H,W).
    """
    # The channels of a gray picture are nearly equal. Float32 has too few digits for differences
    # of their products.
    channels = [np.ascontiguousarray(channel, np.float64) for channel in colours.transpose(2, 0, 1)]
    mask = mask.astype(np.float64)
    means, mask_mean = [box_mean(channel) for channel in channels], box_mean(mask)
    with_mask = [
        box_mean(channel * mask) - mean * mask_mean
        for channel, mean in zip(channels, means, strict=True)
    ]
    slopes = _solve_symmetric(_channel_covariances(channels, means, box_mean), with_mask)
    offset = mask_mean - sum(slope * mean for slope, mean in zip(slopes, means, strict=True))
    explained = np.add.reduce([s * c for s, c in zip(slopes, with_mask, strict=True)])
    variance = np.maximum(box_mean(box_mean(mask * mask) - mask_mean * mask_mean), _MIN_VARIANCE)
    trust = np.clip(box_mean(explained) / variance / MIN_EXPLAINED, 0, 1)
    slopes = [trust * box_mean(slope) for slope in slopes]
    offset = trust * box_mean(offset) + (1 - trust) * mask
    return [np.ascontiguousarray(values, np.float32) for values in (*slopes, offset)]


def _channel_covariances(
    channels: Sequence[_Values], means: Sequence[_Values], box_mean: _BoxFilter
) -> dict[tuple[int, int], _Values]:
    """Covariances of the channels in a window around each pixel, by (smaller, larger) index."""

    def covariance(a: int, b: int) -> _Values:
        values: _Values = box_mean(channels[a] * channels[b]) - means[a] * means[b]
        return values + VARIANCE_EPSILON if a == b else values

    return {(a, b): covariance(a, b) for a in range(3) for b in range(a, 3)}


def _solve_symmetric(
    matrix: dict[tuple[int, int], _Values], vector: Sequence[_Values]
) -> list[_Values]:
    """Solve a symmetric 3x3 system at each pixel, by Cramer's rule.

    Args:
        matrix: entries by (row, column), row <= column, each (H,W).
        vector: the right-hand side, three times (H,W).

    Returns:
        The solution, three times (H,W).
    """
    rr, rg, rb = matrix[0, 0], matrix[0, 1], matrix[0, 2]
    gg, gb, bb = matrix[1, 1], matrix[1, 2], matrix[2, 2]
    cofactors = {
        (0, 0): gg * bb - gb * gb,
        (0, 1): rb * gb - rg * bb,
        (0, 2): rg * gb - rb * gg,
        (1, 1): rr * bb - rb * rb,
        (1, 2): rb * rg - rr * gb,
        (2, 2): rr * gg - rg * rg,
    }
    determinant = rr * cofactors[0, 0] + rg * cofactors[0, 1] + rb * cofactors[0, 2]
    solution: list[_Values] = []
    for row in range(3):
        total = sum(cofactors[min(row, k), max(row, k)] * vector[k] for k in range(3))
        solution.append(total / determinant)
    return solution


def _resize_maps_in_bands(
    maps: Sequence[Array] | Array, size: tuple[int, int]
) -> Iterator[tuple[slice, list[Array]]]:
    """Resize several maps of one shape together, one band of rows at a time."""
    streams = [resize_in_bands(np.ascontiguousarray(values), size) for values in maps]
    for bands in zip(*streams, strict=True):
        yield bands[0][0], [values for _, values in bands]


def _reduce_picture(picture: Image.Image) -> Image.Image:
    """Shrink a picture to the working size; a smaller one is returned itself."""
    scale = min(1.0, WORKING_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BOX, reducing_gap=2.0) if scale < 1 else picture


def _resize_map(values: Array, size: tuple[int, int]) -> Array:
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def _box_filter(radius: int) -> _BoxFilter:
    """A function that takes the mean over a square window around each pixel."""
    ndimage = require_package("scipy.ndimage", "refine")

    def box_mean(values: _Values) -> _Values:
        means: _Values = ndimage.uniform_filter(values, 2 * radius + 1, mode="nearest")
        return means

    return box_mean


def require_package(package: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        package: to import, such as `scipy.ndimage`.
        extra: of u2export, which installs it.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DependencyError(
            f"this needs {package.partition('.')[0]}, which is not installed: {pip_command(extra)}"
        ) from error
