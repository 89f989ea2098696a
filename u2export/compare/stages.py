"""Run a picture through two pipelines, and find the first stage at which they differ."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.compare.budgets import Budget
from u2export.compare.metrics import MIN_CONTRAST, Difference, compare_maps
from u2export.core.arrays import Array
from u2export.core.enums import Stage
from u2export.core.models import PictureSpec
from u2export.core.requests import MAX_PIXELS
from u2export.errors import ParityError
from u2export.images.decode import composite_on_white, open_image
from u2export.images.postprocess import resize_to_mask, stretch_saliency
from u2export.images.preprocess import preprocess as preprocess_image

# Inputs reach 2.7, and 2^-23 of that is 3e-7. The same operations in another order stay below this.
_INPUT_TOLERANCE = 1e-5
# The full-size mask has 8 bits. Values between two steps may be rounded either way.
_MASK_TOLERANCE = 1.5 / 255
_STRETCH_TOLERANCE = 1e-5  # the stretch is a division in float32
_BAND_ROWS = 256  # rows compared at once, to save memory on large pictures
_Reason = tuple[Stage, str]  # the stage, and what differs there


@dataclass(frozen=True)
class Pipeline:
    """A network with its preprocessing and postprocessing.

    Attributes:
        name: in reports.
        network: (1,3,size,size) float32 -> (size,size) float32.
        spec: parameters of preprocessing and postprocessing.
        decode: from a file and the largest allowed number of pixels to an upright picture.
        preprocess: from an upright picture to the network's input.
        postprocess: from the saliency to the stretched mask.
    """

    name: str
    network: Callable[[Array], Array]
    spec: PictureSpec
    decode: Callable[[BinaryIO, int], Image.Image] = lambda file, max_pixels: open_image(
        file, max_pixels=max_pixels
    )
    preprocess: Callable[[Image.Image, PictureSpec], Array] = preprocess_image
    postprocess: Callable[[Array, PictureSpec], Array] = stretch_saliency


@dataclass(frozen=True)
class PipelineTrace:
    """The result of each stage for one picture.

    Attributes:
        picture: (H,W,3) uint8, transparent parts on white.
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
class DecodedCase:
    """A decoded picture file.

    Attributes:
        picture: upright.
        pixels: (H,W,3) uint8, transparent parts on white.
    """

    picture: Image.Image
    pixels: NDArray[np.uint8]


def run_pipeline(
    content: bytes, pipeline: Pipeline, *, max_pixels: int = MAX_PIXELS
) -> PipelineTrace:
    """Run a picture file through a pipeline.

    Raises:
        InputError: the file cannot be decoded.
        ParityError: the network gave NaN or infinite values.
    """
    decoded = decode_case(content, pipeline, max_pixels=max_pixels)
    x = pipeline.preprocess(decoded.picture, pipeline.spec)
    return run_from_input(decoded.pixels, x, pipeline)


def decode_case(content: bytes, pipeline: Pipeline, *, max_pixels: int = MAX_PIXELS) -> DecodedCase:
    """Decode a picture file with a pipeline's decoder.

    Raises:
        InputError: the file cannot be decoded.
    """
    picture = pipeline.decode(io.BytesIO(content), max_pixels)
    return DecodedCase(picture, np.asarray(composite_on_white(picture)))


def run_from_input(pixels: NDArray[np.uint8], x: Array, pipeline: Pipeline) -> PipelineTrace:
    """Run a preprocessed picture through the rest of a pipeline.

    Args:
        pixels: (H,W,3) uint8, of the decoded picture.
        x: (1,3,size,size) float32, the preprocessed picture.
        pipeline: its network and postprocessing run.

    Raises:
        ParityError: the network gave NaN or infinite values.
    """
    saliency = pipeline.network(x)
    if not np.isfinite(saliency).all():
        count = int((~np.isfinite(saliency)).sum())
        raise ParityError(f"{pipeline.name} gave {count} NaN or infinite values")
    stretched = pipeline.postprocess(saliency, pipeline.spec)
    mask = np.asarray(resize_to_mask(stretched, (pixels.shape[1], pixels.shape[0])))
    return PipelineTrace(pixels, x, saliency, stretched, mask)


@dataclass(frozen=True)
class FirstDifference:
    """Where two pipelines first differ, and by how much.

    Attributes:
        stage: the first stage that exceeds its tolerance; None where none does.
        reasons: what exceeds its tolerance, as phrases, first stage first.
        difference: of the networks' outputs; None where they cannot be compared.
        contrast: largest minus smallest value of the reference's saliency.
    """

    stage: Stage | None
    reasons: tuple[str, ...]
    difference: Difference | None
    contrast: float


def find_first_difference(
    reference: PipelineTrace, candidate: PipelineTrace, budget: Budget
) -> FirstDifference:
    """Compare two traces of one picture, stage by stage.

    The budget's means over several pictures are not checked here.
    """
    difference = None
    contrast = float(np.ptp(reference.saliency))
    reasons = [
        *_compare_pictures(reference.picture, candidate.picture),
        *_compare_inputs(reference.x, candidate.x),
    ]
    if reference.saliency.shape == candidate.saliency.shape:
        has_subject = contrast >= MIN_CONTRAST
        difference = compare_maps(reference.saliency, candidate.saliency)
        reasons += _check_saliency(difference, budget)
        if has_subject:
            reasons += _check_stretched_mask(difference, budget)
            reasons += _compare_stretches(reference, candidate)
        reasons += _compare_masks(reference, candidate, has_subject)
    else:
        shapes = f"{_shape_text(reference.saliency)} and {_shape_text(candidate.saliency)}"
        reasons.append((Stage.INFER, f"maps of {shapes}"))
    return FirstDifference(
        stage=reasons[0][0] if reasons else None,
        reasons=tuple(text for _, text in reasons),
        difference=difference,
        contrast=contrast,
    )


def _compare_pictures(
    reference: NDArray[np.uint8], candidate: NDArray[np.uint8]
) -> Iterator[_Reason]:
    if reference.shape != candidate.shape:
        shapes = f"{_shape_text(reference)} and {_shape_text(candidate)} pixels"
        yield Stage.DECODE, f"pictures of {shapes}"
    elif largest := _largest_difference(reference, candidate):
        yield Stage.DECODE, f"pixels differ by up to {largest} of 255"


def _compare_inputs(reference: Array, candidate: Array) -> Iterator[_Reason]:
    if reference.shape != candidate.shape:
        sizes = f"{reference.shape[-1]} and {candidate.shape[-1]} pixels a side"
        yield Stage.PREPROCESS, f"inputs of {sizes}"
        return
    distance = np.abs(reference - candidate)
    if not distance.max() <= _INPUT_TOLERANCE:
        text = f"inputs differ by {distance.max():.3g} at most, {distance.mean():.3g} on average"
        yield Stage.PREPROCESS, text


def _check_saliency(difference: Difference, budget: Budget) -> Iterator[_Reason]:
    for name in ("raw_max", "raw_mean"):
        value, allowed = getattr(difference, name), getattr(budget, name)
        if allowed is not None and not value <= allowed:
            yield Stage.INFER, f"{name} {value:.3g}, allowed {allowed:g}"


def _check_stretched_mask(difference: Difference, budget: Budget) -> Iterator[_Reason]:
    if not difference.mask_iou >= budget.worst_iou:
        text = f"mask_iou {difference.mask_iou:.4f}, at least {budget.worst_iou:g}"
        yield Stage.POSTPROCESS, text
    if not difference.boundary_f >= budget.worst_boundary:
        text = f"boundary_f {difference.boundary_f:.4f}, at least {budget.worst_boundary:g}"
        yield Stage.POSTPROCESS, text


def _compare_stretches(reference: PipelineTrace, candidate: PipelineTrace) -> Iterator[_Reason]:
    """Check that the stretched maps differ no more than the saliency explains.

    They do where one pipeline inverts the map and the other does not.
    """
    plain = PictureSpec()
    maps = [stretch_saliency(trace.saliency, plain) for trace in (reference, candidate)]
    before = float(np.abs(maps[0] - maps[1]).max())
    after = float(np.abs(reference.stretched - candidate.stretched).max())
    if after > before + _STRETCH_TOLERANCE:
        text = f"stretched maps differ by {after:.3g}, the networks' maps by {before:.3g}"
        yield Stage.POSTPROCESS, text


def _compare_masks(
    reference: PipelineTrace, candidate: PipelineTrace, has_subject: bool
) -> Iterator[_Reason]:
    """Check that the full-size masks differ no more than the stretched ones explain."""
    if reference.mask.shape != candidate.mask.shape:
        sizes = f"{_shape_text(reference.mask)} and {_shape_text(candidate.mask)} pixels"
        yield Stage.COMPOSE, f"masks of {sizes}"
    elif has_subject:
        before = float(np.abs(reference.stretched - candidate.stretched).max())
        after = _largest_difference(reference.mask, candidate.mask) / 255
        if after > before + _MASK_TOLERANCE:
            yield Stage.COMPOSE, f"masks differ by {after:.3g}, stretched maps by {before:.3g}"


def _largest_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    """Compute the largest difference of two pictures, one band of rows at a time."""
    if a is b:
        return 0
    bands = [slice(top, top + _BAND_ROWS) for top in range(0, len(a), _BAND_ROWS)]
    return max(int(np.abs(a[band].astype(np.int16) - b[band]).max()) for band in bands)


def _shape_text(values: NDArray[np.generic]) -> str:
    return f"{values.shape[1]}x{values.shape[0]}"
