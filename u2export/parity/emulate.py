"""What a device with real half-precision arithmetic would answer, computed without one.

onnxruntime's CPU provider computes half-precision graphs in float32, so running the file there
shows that the graph is right and says nothing of its rounding. Here every operation of the
reference network takes values rounded to half, accumulates in float32, and has its result rounded.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from u2export.backend import Array
from u2export.errors import ExportError
from u2export.u2net import U2Net, fold_batch_norm, located


def half_precision(network: U2Net, x: Array) -> Array:
    """Run the network as if every operation rounded its result to half precision.

    Args:
        network: the reference, in evaluation mode.
        x: (N,3,H,W) float32 network input.

    Returns:
        (N,1,H,W) float32; d0.

    Raises:
        ExportError: a value grew beyond half precision; the module is named.
    """
    rounded = copy.deepcopy(fold_batch_norm(network))
    rounded.all_outputs = False
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            parameter.copy_(_round(parameter, name))
    with torch.inference_mode(), located(rounded) as place, _Rounding(place):
        y: Array = rounded(_round(torch.tensor(x), "the input")).numpy()
    return np.array(y)


def _round(tensor: Tensor, place: str) -> Tensor:
    half = tensor.half().float()
    if not torch.isfinite(half).all():
        largest = float(tensor.abs().max())
        raise ExportError(
            f"half precision overflows at {place}: {largest:g} is more than 65504; export it as "
            "fp32"
        )
    return half


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook has no types
    """Rounds what every operation gives."""

    def __init__(self, place: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._place = place

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            return _round(result, self._place[-1])
        return result
