"""What a report shows of a case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2export.backend import Array


@dataclass(frozen=True)
class Shown:
    """One case of one candidate, to be looked at.

    Attributes:
        candidate: its name in the report.
        case: the case's name.
        picture: (H,W,3) uint8.
        reference: (S,S) float32, the stretched mask in [0,1].
        found: the candidate's, the same.
    """

    candidate: str
    case: str
    picture: NDArray[np.uint8]
    reference: Array
    found: Array
