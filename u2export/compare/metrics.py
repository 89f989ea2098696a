"""Metrics for the distance between two saliency maps, and their summary over many pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from u2export.core.arrays import Array
from u2export.errors import ParityError

BoolMask = NDArray[np.bool_]
SUBJECT_THRESHOLD = 0.5  # a pixel of a stretched mask is subject from this value on
BOUNDARY_PIXELS = 2  # tolerance of `boundary_f`, in pixels at the network's own size
# A saliency map with less contrast has no subject. The stretch would turn its rounding errors into
# a meaningless mask, so only its raw values count.
MIN_CONTRAST = 0.5


class Difference(BaseModel):
    """The distance of one output from its reference.

    "Stretched" masks are saliency maps rescaled to [0,1].

    Attributes:
        raw_max: largest absolute difference of the saliency.
        raw_mean: mean absolute difference of the saliency.
        raw_p999: 99.9th percentile of the absolute difference of the saliency.
        raw_cosine: cosine of the angle between the two maps; 1 where both are zero.
        mask_mae: mean absolute difference of the stretched masks, in [0,1].
        mask_iou: intersection over union of the stretched masks at 0.5; 1 where both are empty.
        mask_flipped: share of pixels that are subject in only one mask, at 0.5.
        boundary_f: F measure of the masks' boundaries, with a tolerance of `BOUNDARY_PIXELS`;
            1 where neither mask has a boundary.
    """

    model_config = ConfigDict(frozen=True)

    raw_max: float
    raw_mean: float
    raw_p999: float = 0.0
    raw_cosine: float = 1.0
    mask_mae: float
    mask_iou: float
    mask_flipped: float = 0.0
    boundary_f: float = 1.0


class MaskComparison(BaseModel):
    """The metrics of one comparison over several pictures.

    Attributes:
        pictures: number of pictures compared.
        subjects: number of pictures with a subject. Only their masks count.
        raw_max: largest absolute difference of the saliency.
        raw_mean: largest of the pictures' mean absolute differences.
        mask_mae: mean over the pictures with a subject; None without one.
        mask_iou: mean over the pictures with a subject; None without one.
        worst_iou: smallest over the pictures with a subject; None without one.
    """

    model_config = ConfigDict(frozen=True)

    pictures: int
    subjects: int
    raw_max: float
    raw_mean: float
    mask_mae: float | None
    mask_iou: float | None
    worst_iou: float | None


def summarize_differences(differences: list[Difference], contrasts: list[float]) -> MaskComparison:
    """Summarize the differences of several pictures.

    Args:
        differences: one per picture.
        contrasts: largest minus smallest value of each reference map.

    Raises:
        ParityError: there are no differences.
    """
    if not differences:
        raise ParityError("nothing was compared, which proves nothing")
    with_subject = [
        difference
        for difference, contrast in zip(differences, contrasts, strict=True)
        if contrast >= MIN_CONTRAST
    ]
    count = len(with_subject)
    return MaskComparison(
        pictures=len(differences),
        subjects=count,
        raw_max=max(difference.raw_max for difference in differences),
        raw_mean=max(difference.raw_mean for difference in differences),
        mask_mae=sum(d.mask_mae for d in with_subject) / count if count else None,
        mask_iou=sum(d.mask_iou for d in with_subject) / count if count else None,
        worst_iou=min(d.mask_iou for d in with_subject) if count else None,
    )


def compare_maps(reference: Array, candidate: Array) -> Difference:
    """Compare two saliency maps of one picture.

    Args:
        reference: (H,W) float32 in [0,1].
        candidate: the same shape.

    Raises:
        ParityError: the shapes differ, or a map holds NaN or infinite values. Such a map never
            counts as equal.
    """
    if reference.shape != candidate.shape:
        raise ParityError(f"shapes differ: {reference.shape} and {candidate.shape}")
    for name, values in (("reference", reference), ("candidate", candidate)):
        if not np.isfinite(values).all():
            raise ParityError(f"the {name}'s output holds NaN or infinite values")
    raw = np.abs(reference.astype(np.float64) - candidate)
    a, b = _stretch(reference), _stretch(candidate)
    a_subject, b_subject = a >= SUBJECT_THRESHOLD, b >= SUBJECT_THRESHOLD
    return Difference(
        raw_max=float(raw.max()),
        raw_mean=float(raw.mean()),
        raw_p999=float(np.quantile(raw, 0.999)),
        raw_cosine=cosine(reference, candidate),
        mask_mae=float(np.abs(a - b).mean()),
        mask_iou=iou(a, b),
        mask_flipped=float((a_subject != b_subject).mean()),
        boundary_f=boundary_f(a_subject, b_subject),
    )


def _stretch(saliency: Array) -> Array:
    low, high = saliency.min(), saliency.max()
    return (saliency - low) / (high - low) if high > low else np.zeros_like(saliency)


def cosine(reference: Array, candidate: Array) -> float:
    """Compute the cosine of the angle between two maps of one shape; 1 where both are zero."""
    a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(a @ b) / lengths


def iou(reference: Array, candidate: Array, threshold: float = SUBJECT_THRESHOLD) -> float:
    """Compute the intersection over union of two masks in [0,1]; 1 where both are empty."""
    a, b = reference >= threshold, candidate >= threshold
    union = int(np.logical_or(a, b).sum())
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def boundary_f(reference: BoolMask, candidate: BoolMask, pixels: int = BOUNDARY_PIXELS) -> float:
    """Compute the F measure of two masks' boundaries.

    Args:
        reference: (H,W) bool.
        candidate: the same shape.
        pixels: tolerance. Boundary pixels match up to this distance.

    Returns:
        Harmonic mean of precision and recall. Precision is the share of the candidate's boundary
        near the reference's, recall the share of the reference's near the candidate's. The result
        is 1 where neither mask has a boundary, and 0 where only one has.

    Source:
        F. Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object
        Segmentation, CVPR 2016: the contour accuracy F.
    """
    a, b = _boundary(reference), _boundary(candidate)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision = float((b & _dilate(a, pixels)).sum() / b.sum())
    recall = float((a & _dilate(b, pixels)).sum() / a.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: BoolMask) -> BoolMask:
    """Select the mask's pixels with a direct neighbour outside it, the picture's edge aside."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    boundary: BoolMask = mask & ~inner
    return boundary


def _dilate(mask: BoolMask, pixels: int) -> BoolMask:
    """Select all pixels within a distance of the mask."""
    height, width = mask.shape
    padded = np.pad(mask, pixels)
    dilated = np.zeros_like(mask)
    for down in range(-pixels, pixels + 1):
        for right in range(-pixels, pixels + 1):
            if down * down + right * right <= pixels * pixels:
                rows = slice(pixels + down, pixels + down + height)
                dilated |= padded[rows, pixels + right : pixels + right + width]
    return dilated
