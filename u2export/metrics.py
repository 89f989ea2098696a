"""How far two saliency maps, or two masks, are apart; and several pictures summed up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from u2export.backend import Array
from u2export.errors import ParityError

Flags = NDArray[np.bool_]
THRESHOLD = 0.5  # of a stretched mask: from here on a pixel is subject
BOUNDARY = 2  # pixels at the network's own size


class Difference(BaseModel):
    """The distance of one output from its reference.

    Attributes:
        raw_max: largest absolute difference of the saliency, before the stretch.
        raw_mean: mean absolute difference of the saliency.
        raw_p999: absolute difference of the saliency that 99.9 percent of the pixels do not exceed.
        raw_cosine: cosine of the angle between the two maps; 1 where both are zero.
        mask_mae: mean absolute difference of the stretched masks, in [0,1].
        mask_iou: intersection over union of the stretched masks at 0.5; 1 where both are empty.
        mask_flipped: share of pixels that are subject in one mask only, at 0.5.
        boundary_f: F measure of the masks' boundaries, `BOUNDARY` pixels apart at most; 1 where
            neither has one.
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


def compare(reference: Array, candidate: Array) -> Difference:
    """Compare two saliency maps of one picture.

    Args:
        reference: (H,W) float32 in [0,1].
        candidate: the same shape.

    Raises:
        ParityError: the shapes differ, or a map holds NaN or infinite values; such a map never
            counts as equal to anything.
    """
    if reference.shape != candidate.shape:
        raise ParityError(f"shapes differ: {reference.shape} and {candidate.shape}")
    for name, values in (("reference", reference), ("candidate", candidate)):
        if not np.isfinite(values).all():
            raise ParityError(f"the {name}'s output holds NaN or infinite values")
    raw = np.abs(reference.astype(np.float64) - candidate)
    a, b = _stretched(reference), _stretched(candidate)
    return Difference(
        raw_max=float(raw.max()),
        raw_mean=float(raw.mean()),
        raw_p999=float(np.quantile(raw, 0.999)),
        raw_cosine=cosine(reference, candidate),
        mask_mae=float(np.abs(a - b).mean()),
        mask_iou=iou(a, b),
        mask_flipped=float(((a >= THRESHOLD) != (b >= THRESHOLD)).mean()),
        boundary_f=boundary_f(a >= THRESHOLD, b >= THRESHOLD),
    )


def cosine(reference: Array, candidate: Array) -> float:
    """Cosine of the angle between two maps of one shape; 1 where both are zero."""
    a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(a @ b) / lengths


def boundary_f(reference: Flags, candidate: Flags, pixels: int = BOUNDARY) -> float:
    """F measure of two masks' boundaries.

    Args:
        reference: (H,W) bool.
        candidate: the same shape.
        pixels: how far apart two boundary pixels may be and still be the same.

    Returns:
        Harmonic mean of the share of the candidate's boundary that lies near the reference's, and
        of the reference's near the candidate's; 1 where neither has a boundary, 0 where one has.

    Source:
        F. Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object
        Segmentation, CVPR 2016: the contour accuracy F.
    """
    a, b = _boundary(reference), _boundary(candidate)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision = float((b & _grown(a, pixels)).sum() / b.sum())
    recall = float((a & _grown(b, pixels)).sum() / a.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: Flags) -> Flags:
    """The mask's pixels of which a direct neighbour is not in it; the picture's edge is none."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    found: Flags = mask & ~inner
    return found


def _grown(mask: Flags, pixels: int) -> Flags:
    """Everything within a distance of the mask."""
    height, width = mask.shape
    padded = np.pad(mask, pixels)
    found = np.zeros_like(mask)
    for down in range(-pixels, pixels + 1):
        for right in range(-pixels, pixels + 1):
            if down * down + right * right <= pixels * pixels:
                rows = slice(pixels + down, pixels + down + height)
                found |= padded[rows, pixels + right : pixels + right + width]
    return found


def iou(reference: Array, candidate: Array, threshold: float = THRESHOLD) -> float:
    """Intersection over union of two masks in [0,1] at a threshold; 1 where both are empty."""
    a, b = reference >= threshold, candidate >= threshold
    union = int(np.logical_or(a, b).sum())
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def _stretched(saliency: Array) -> Array:
    low, high = saliency.min(), saliency.max()
    return (saliency - low) / (high - low) if high > low else np.zeros_like(saliency)


# A map with less contrast than this has no subject: the stretch blows its rounding up into a mask
# that means nothing, so only its raw values are judged.
MIN_CONTRAST = 0.5


class Judgement(BaseModel):
    """The figures of one comparison over several pictures.

    Attributes:
        pictures: how many were compared.
        subjects: how many of them have a subject, and so a mask that was judged.
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


def judge(differences: list[Difference], contrasts: list[float]) -> Judgement:
    """Sum up the differences of several pictures.

    Args:
        differences: one per picture.
        contrasts: largest minus smallest value of each reference map.

    Raises:
        ParityError: there is nothing to judge.
    """
    if not differences:
        raise ParityError("nothing was compared, which proves nothing")
    judged = [d for d, c in zip(differences, contrasts, strict=True) if c >= MIN_CONTRAST]
    count = len(judged)
    return Judgement(
        pictures=len(differences),
        subjects=count,
        raw_max=max(d.raw_max for d in differences),
        raw_mean=max(d.raw_mean for d in differences),
        mask_mae=sum(d.mask_mae for d in judged) / count if count else None,
        mask_iou=sum(d.mask_iou for d in judged) / count if count else None,
        worst_iou=min(d.mask_iou for d in judged) if count else None,
    )
