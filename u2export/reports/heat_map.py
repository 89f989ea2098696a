"""Thumbnails of masks, and heat maps of their differences, for HTML reports."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from u2export.core.arrays import Array

# Heat map colours for differences from 0 to 1. They get ever brighter, so gray prints work too.
HEAT_COLOURS = ((0, 0, 0), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191))
_LONG_EDGE = 320  # pixels, the longer edge of a thumbnail
_MIN_SHORT_EDGE = 64  # pixels, the shorter edge: a picture one pixel high stays visible


def thumbnail_size(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """Choose the size at which a report shows a picture and its masks.

    Args:
        picture: (H,W,3) uint8.

    Returns:
        Width and height in pixels. The proportions are the picture's, unless it is very narrow.
    """
    height, width = picture.shape[:2]
    scale = _LONG_EDGE / max(width, height)
    return (
        max(_MIN_SHORT_EDGE, round(width * scale)),
        max(_MIN_SHORT_EDGE, round(height * scale)),
    )


def data_uri(image: Image.Image, size: tuple[int, int]) -> str:
    """Encode an image as a `data:` URI.

    Args:
        image: resized first.
        size: width and height in pixels.

    Returns:
        The URI of a PNG.
    """
    png = io.BytesIO()
    image.resize(size, Image.Resampling.BOX, reducing_gap=2.0).save(png, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def heat_map(reference: Array, candidate: Array, size: tuple[int, int]) -> Image.Image:
    """Draw where two masks differ.

    Equal pixels are black. The colour follows the square root of the difference, so that small
    differences are visible. Downscaling keeps the largest difference of each neighbourhood.

    Args:
        reference: (S,S) float32 in [0,1].
        candidate: the same shape and range.
        size: width and height of the image in pixels.

    Returns:
        An RGB image.
    """
    difference = to_gray_image(np.sqrt(np.abs(reference - candidate)))
    # The filter's size must be odd.
    neighbourhood = math.ceil(max(difference.width / size[0], difference.height / size[1])) | 1
    largest = difference.filter(ImageFilter.MaxFilter(neighbourhood))
    levels = np.asarray(largest.resize(size, Image.Resampling.NEAREST))
    stops = np.linspace(0, 255, len(HEAT_COLOURS))
    channels = [np.interp(levels, stops, values) for values in zip(*HEAT_COLOURS, strict=True)]
    return Image.fromarray(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))


def to_gray_image(mask: Array) -> Image.Image:
    """Convert a mask (S,S) in [0,1] to an 8-bit gray image."""
    return Image.fromarray(np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8))
