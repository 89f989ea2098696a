"""What a device with real half-precision arithmetic would answer, computed without one.

onnxruntime's CPU provider computes half-precision graphs in float32, so running the file there
shows that the graph is right and says nothing of its rounding. Here every operation of the
reference network takes values rounded to half, accumulates in float32, and has its result rounded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from u2export.backend import Array
from u2export.errors import ExportError, InputError
from u2export.spec import Precision
from u2export.u2net import U2Net, fold_batch_norm, located

# A module is said to lose values when more than this share of what it gave became zero.
LOST_SHARE = 0.05
_TYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_WORDS = {Precision.FP16: "half precision", Precision.BF16: "bfloat16"}


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
    return Emulated(network, Precision.FP16)(x)


class Emulated:
    """The network as a device would compute it whose every operation rounds its result.

    Attributes:
        lost: by module, the largest share of values that became zero though they were not; only of
            modules where it is more than `LOST_SHARE`.
    """

    def __init__(self, network: U2Net, precision: Precision) -> None:
        """Round the network's own values.

        Args:
            network: the reference, in evaluation mode.
            precision: fp16 or bf16.

        Raises:
            InputError: another precision.
            ExportError: a parameter is beyond it; it is named.
        """
        if precision not in _TYPES:
            raise InputError(f"fp16 and bf16 can be emulated, not {precision}")
        self.lost: dict[str, float] = {}
        self._precision = precision
        self._network = copy.deepcopy(fold_batch_norm(network))
        self._network.all_outputs = False
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                parameter.copy_(self._rounded(parameter, name))

    def __call__(self, x: Array) -> Array:
        """Run it.

        Args:
            x: (N,3,H,W) float32 network input.

        Returns:
            (N,1,H,W) float32; d0.

        Raises:
            ExportError: a value grew beyond the precision; the module is named.
        """
        with (
            torch.inference_mode(),
            located(self._network) as place,
            _Rounding(lambda tensor: self._rounded(tensor, place[-1])),
        ):
            start = self._rounded(torch.tensor(x), "the input")
            y: Array = self._network(start).numpy()
        return np.array(y)

    def _rounded(self, tensor: Tensor, place: str) -> Tensor:
        rounded = tensor.to(_TYPES[self._precision]).float()
        if not torch.isfinite(rounded).all():
            largest = float(tensor.abs().max())
            most = torch.finfo(_TYPES[self._precision]).max
            raise ExportError(
                f"{_WORDS[self._precision]} overflows at {place}: {largest:g} is more than "
                f"{most:g}; export it as fp32"
            )
        if tensor.numel():
            lost = float(((rounded == 0) & (tensor != 0)).sum()) / tensor.numel()
            if lost > max(LOST_SHARE, self.lost.get(place, 0.0)):
                self.lost[place] = lost
        return rounded


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook has no types
    """Rounds what every operation gives."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rounded = rounded

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            return self._rounded(result)
        return result
