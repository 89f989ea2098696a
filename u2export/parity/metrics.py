"""How far two saliency maps, or two masks, are apart."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from u2export.backend import Array
from u2export.errors import ParityError


class Difference(BaseModel):
    """The distance of one output from its reference.

    Attributes:
        raw_max: largest absolute difference of the saliency, before the stretch.
        raw_mean: mean absolute difference of the saliency.
        mask_mae: mean absolute difference of the stretched masks, in [0,1].
        mask_iou: intersection over union of the stretched masks at 0.5; 1 where both are empty.
    """

    model_config = ConfigDict(frozen=True)

    raw_max: float
    raw_mean: float
    mask_mae: float
    mask_iou: float


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
        mask_mae=float(np.abs(a - b).mean()),
        mask_iou=iou(a, b),
    )


def iou(reference: Array, candidate: Array, threshold: float = 0.5) -> float:
    """Intersection over union of two masks in [0,1] at a threshold; 1 where both are empty."""
    a, b = reference >= threshold, candidate >= threshold
    union = int(np.logical_or(a, b).sum())
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def _stretched(saliency: Array) -> Array:
    low, high = saliency.min(), saliency.max()
    return (saliency - low) / (high - low) if high > low else np.zeros_like(saliency)
