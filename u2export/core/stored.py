"""Which precision the weights in a model file have, found in its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2export.core.enums import Precision

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
