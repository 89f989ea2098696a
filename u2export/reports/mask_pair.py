"""Two masks of one picture, shown next to each other in a report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2export.core.arrays import Array


@dataclass(frozen=True)
class MaskPair:
    """The reference's and a candidate's mask of one picture.

    Attributes:
        candidate: name of the candidate in the report.
        case: name of the picture in the report.
        picture: (H,W,3) uint8.
        reference_mask: (S,S) float32 in [0,1], after the stretch.
        candidate_mask: the same shape and range.
    """

    candidate: str
    case: str
    picture: NDArray[np.uint8]
    reference_mask: Array
    candidate_mask: Array
