"""A picture's way through a pipeline, stage by stage, and where two ways part."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export import pipeline
from u2export.backend import Array
from u2export.errors import ParityError
from u2export.metrics import MIN_CONTRAST, Difference, compare
from u2export.parity.budgets import Budget
from u2export.spec import MAX_PIXELS, PictureSpec

# The same code on the same bytes gives the same input; float32 rounding of another order of the
# same operations stays below this (values up to 2.7, 2^-23 of which is 3e-7).
SAME_INPUT = 1e-5
# The full-size mask is rounded to 8 bits: one step where the stretched values lie on its edge.
MASK_STEP = 1.5 / 255
_BAND = 256  # rows compared at once, so that large pictures need no memory beside their own


class Stage(str, Enum):
    """Where a picture is on its way."""

    PICTURE = "decoded picture"
    INPUT = "network input"
    SALIENCY = "raw saliency"
    STRETCHED = "stretched mask"
    MASK = "full-size mask"


@dataclass(frozen=True)
class Side:
    """One pipeline of two: a network with all that goes before and after it.

    Attributes:
        name: in reports.
        network: (1,3,size,size) float32 -> (size,size) float32.
        spec: how a picture becomes the network's input, and its output a mask.
        decode: from a picture file to an upright picture.
        prepare: from an upright picture to the network's input.
        finish: from the saliency to the stretched mask.
    """

    name: str
    network: Callable[[Array], Array]
    spec: PictureSpec
    decode: Callable[[BinaryIO, int], Image.Image] = lambda file, most: pipeline.open_picture(
        file, max_pixels=most
    )
    prepare: Callable[[Image.Image, PictureSpec], Array] = pipeline.preprocess
    finish: Callable[[Array, PictureSpec], Array] = pipeline.stretch


@dataclass(frozen=True)
class Way:
    """What a picture became at each stage.

    Attributes:
        picture: (H,W,3) uint8, transparency put on white.
        x: (1,3,size,size) float32.
        saliency: (size,size) float32.
        stretched: (size,size) float32 in [0,1].
        mask: (H,W) uint8.
    """

    picture: NDArray[np.uint8]
    x: Array
    saliency: Array
    stretched: Array
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """A picture file that was decoded.

    Attributes:
        picture: upright.
        pixels: (H,W,3) uint8, transparency put on white.
    """

    picture: Image.Image
    pixels: NDArray[np.uint8]


def decode(content: bytes, side: Side, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode a picture file as a side does.

    Raises:
        InputError: it cannot be decoded.
    """
    picture = side.decode(io.BytesIO(content), max_pixels)
    return Decoded(picture, np.asarray(pipeline.opaque(picture)))


def follow(content: bytes, side: Side, *, max_pixels: int = MAX_PIXELS) -> Way:
    """Take a picture file through one side.

    Raises:
        InputError: it cannot be decoded.
        ParityError: the network gave NaN or infinite values.
    """
    decoded = decode(content, side, max_pixels=max_pixels)
    return onward(decoded.pixels, side.prepare(decoded.picture, side.spec), side)


def onward(pixels: NDArray[np.uint8], x: Array, side: Side) -> Way:
    """Take a prepared picture through the rest of one side.

    Args:
        pixels: (H,W,3), of the decoded picture.
        x: (1,3,size,size), what was made of it for the network.
        side: whose network and what follows it.

    Raises:
        ParityError: the network gave NaN or infinite values.
    """
    saliency = side.network(x)
    if not np.isfinite(saliency).all():
        count = int((~np.isfinite(saliency)).sum())
        raise ParityError(f"{side.name} gave {count} NaN or infinite values")
    stretched = side.finish(saliency, side.spec)
    mask = np.asarray(pipeline.enlarge(stretched, (pixels.shape[1], pixels.shape[0])))
    return Way(pixels, x, saliency, stretched, mask)


@dataclass(frozen=True)
class Parting:
    """Where and by how much two ways part.

    Attributes:
        stage: the first that differs by more than it may; None where none does.
        reasons: what is over its bound, as phrases, first stage first.
        difference: of the networks' outputs; None where they cannot be compared.
        contrast: largest minus smallest value of the reference's saliency.
    """

    stage: Stage | None
    reasons: tuple[str, ...]
    difference: Difference | None
    contrast: float


def part(reference: Way, candidate: Way, budget: Budget) -> Parting:
    """Compare two ways of one picture, stage by stage.

    What is a mean over pictures in the budget is not judged here.
    """
    found: list[tuple[Stage, str]] = []
    if reference.picture.shape != candidate.picture.shape:
        shapes = f"{_size(reference.picture)} and {_size(candidate.picture)} pixels"
        found.append((Stage.PICTURE, f"pictures of {shapes}"))
    elif most := _apart(reference.picture, candidate.picture):
        found.append((Stage.PICTURE, f"pixels differ by up to {most} of 255"))
    found += _parted_inputs(reference.x, candidate.x)
    contrast = float(np.ptp(reference.saliency))
    if reference.saliency.shape != candidate.saliency.shape:
        shapes = f"{_size(reference.saliency)} and {_size(candidate.saliency)}"
        found.append((Stage.SALIENCY, f"maps of {shapes}"))
        return Parting(found[0][0], tuple(text for _, text in found), None, contrast)
    difference = compare(reference.saliency, candidate.saliency)
    subject = contrast >= MIN_CONTRAST
    found += [(Stage.SALIENCY, text) for text in _over_raw(difference, budget)]
    found += [(Stage.STRETCHED, text) for text in _over_mask(difference, budget) if subject]
    found += _parted_masks(reference, candidate, subject)
    stage = found[0][0] if found else None
    return Parting(stage, tuple(text for _, text in found), difference, contrast)


def _parted_inputs(reference: Array, candidate: Array) -> list[tuple[Stage, str]]:
    if reference.shape != candidate.shape:
        sizes = f"{reference.shape[-1]} and {candidate.shape[-1]} pixels a side"
        return [(Stage.INPUT, f"inputs of {sizes}")]
    apart = np.abs(reference - candidate)
    if not apart.max() <= SAME_INPUT:
        text = f"inputs differ by {apart.max():.3g} at most, {apart.mean():.3g} on average"
        return [(Stage.INPUT, text)]
    return []


def _over_raw(difference: Difference, budget: Budget) -> Iterator[str]:
    for name in ("raw_max", "raw_mean"):
        value, allowed = getattr(difference, name), getattr(budget, name)
        if allowed is not None and not value <= allowed:
            yield f"{name} {value:.3g}, allowed {allowed:g}"


def _over_mask(difference: Difference, budget: Budget) -> Iterator[str]:
    if not difference.mask_iou >= budget.worst_iou:
        yield f"mask_iou {difference.mask_iou:.4f}, at least {budget.worst_iou:g}"
    if not difference.boundary_f >= budget.worst_boundary:
        yield f"boundary_f {difference.boundary_f:.4f}, at least {budget.worst_boundary:g}"


def _parted_masks(reference: Way, candidate: Way, subject: bool) -> list[tuple[Stage, str]]:
    """Whether the full-size masks are further apart than the stretched ones account for."""
    if reference.mask.shape != candidate.mask.shape:
        sizes = f"{_size(reference.mask)} and {_size(candidate.mask)} pixels"
        return [(Stage.MASK, f"masks of {sizes}")]
    if not subject:
        return []
    before = float(np.abs(reference.stretched - candidate.stretched).max())
    apart = _apart(reference.mask, candidate.mask) / 255
    if apart > before + MASK_STEP:
        return [(Stage.MASK, f"masks differ by {apart:.3g}, stretched maps by {before:.3g}")]
    return []


def _apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """Largest difference of two pictures, a band of rows at a time."""
    if one is other:
        return 0
    bands = range(0, len(one), _BAND)
    return max(
        int(np.abs(one[top : top + _BAND].astype(np.int16) - other[top : top + _BAND]).max())
        for top in bands
    )


def _size(values: NDArray[np.generic]) -> str:
    return f"{values.shape[1]}x{values.shape[0]}"
