"""Which precision the weights in a model file have, found in its bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2export.core.enums import Precision

# No network comes near these. A small file that goes beyond would keep its reader busy for hours.
MAX_STEPS = 1_000_000  # one takes about a microsecond
MAX_DIMENSIONS, MAX_SIDE = 16, 1 << 40
BYTES_PER_STEP = 1024  # of values that are looked at
_STRICTEST_FIRST = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.BF16)


@dataclass(frozen=True)
class StoredTensor:
    """The weights of one layer as a file holds them.

    Attributes:
        precision: of their type; 8-bit integers and values rounded to 256 levels are int8.
        elements: number of values.
        in_bfloat16: they are float32 whose values bfloat16 can hold.
    """

    precision: Precision
    elements: int
    in_bfloat16: bool = False


class Effort:
    """What searching the graph of one file for its weights may take."""

    def __init__(self) -> None:
        """Nothing is spent yet."""
        self._left = MAX_STEPS

    def spend(self, steps: int = 1) -> None:
        """Take some of it.

        Raises:
            ValueError: nothing is left.
        """
        self._left -= steps
        if self._left < 0:
            raise ValueError(f"finding its weights takes more than {MAX_STEPS} steps")


def count_elements(shape: Sequence[int]) -> int:
    """Count the values of a tensor.

    Raises:
        ValueError: no tensor has that shape.
    """
    if len(shape) > MAX_DIMENSIONS or not all(0 <= side <= MAX_SIDE for side in shape):
        raise ValueError(f"it holds a tensor of {len(shape)} sides that no memory holds")
    return math.prod(shape)


def possible_precisions(tensors: Iterable[StoredTensor]) -> tuple[Precision, ...]:
    """Say what most weights in a file are.

    Args:
        tensors: of the layers that compute.

    Returns:
        The precisions that describe them, the strictest first: float32 values that bfloat16 can
        hold are both. Float32 where there are none: nothing speaks for less.
    """
    counts = dict.fromkeys(_STRICTEST_FIRST, 0)
    held_by_bfloat16 = True
    for tensor in tensors:
        counts[tensor.precision] += tensor.elements
        held_by_bfloat16 &= tensor.in_bfloat16 or tensor.precision is Precision.BF16
    found = max(counts, key=lambda precision: counts[precision])
    both = found is Precision.FP32 and counts[found] > 0 and held_by_bfloat16
    return (Precision.FP32, Precision.BF16) if both else (found,)


def fit_bfloat16(values: NDArray[np.float32]) -> bool:
    """Whether bfloat16 holds these values exactly: the lower half of each is zero."""
    return not (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any()
