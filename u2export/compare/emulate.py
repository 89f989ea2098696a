"""Emulation of fp16 and bf16 arithmetic on a machine without it.

onnxruntime's CPU provider computes half-precision graphs in float32. Running the file there checks
the graph, but not the rounding. In the emulation, every operation of the reference network takes
rounded inputs, accumulates in float32, and has its result rounded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from u2export.core.arrays import Array
from u2export.core.enums import Precision
from u2export.errors import ExportError, InputError
from u2export.network.u2net import U2Net, current_module, fold_batch_norm

# Underflow is reported for modules where a larger share of the output became zero.
MIN_UNDERFLOW_SHARE = 0.05
_DTYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_PRECISION_NAMES = {Precision.FP16: "half precision", Precision.BF16: "bfloat16"}


class EmulatedNetwork:
    """The reference network on a device that rounds the result of every operation.

    Attributes:
        underflow_shares: by module, the largest share of non-zero values that became zero. Only
            modules above `MIN_UNDERFLOW_SHARE` are listed.
    """

    def __init__(self, network: U2Net, precision: Precision) -> None:
        """Copy the network and round its parameters.

        Args:
            network: the reference, in evaluation mode.
            precision: fp16 or bf16.

        Raises:
            InputError: another precision.
            ExportError: a parameter is out of range. The message names it.
        """
        if precision not in _DTYPES:
            raise InputError(f"fp16 and bf16 can be emulated, not {precision}")
        self.underflow_shares: dict[str, float] = {}
        self._precision = precision
        self._network = copy.deepcopy(fold_batch_norm(network))
        self._network.all_outputs = False
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                parameter.copy_(self._round(parameter, name))

    def __call__(self, x: Array) -> Array:
        """Run the network.

        Args:
            x: (N,3,H,W) float32 network input.

        Returns:
            (N,1,H,W) float32, d0.

        Raises:
            ExportError: a value is out of range. The message names the module.
        """
        with (
            torch.inference_mode(),
            current_module(self._network) as modules,
            _RoundingMode(lambda tensor: self._round(tensor, modules[-1])),
        ):
            rounded_input = self._round(torch.tensor(x), "the input")
            saliency: Array = self._network(rounded_input).numpy()
        return np.array(saliency)

    def _round(self, tensor: Tensor, name: str) -> Tensor:
        """Round a tensor; `name` tells where it comes from."""
        dtype = _DTYPES[self._precision]
        rounded = tensor.to(dtype).float()
        if not torch.isfinite(rounded).all():
            largest = float(tensor.abs().max())
            raise ExportError(
                f"{_PRECISION_NAMES[self._precision]} overflows at {name}: {largest:g} is more "
                f"than {torch.finfo(dtype).max:g}; export it as fp32"
            )
        if tensor.numel():
            share = float(((rounded == 0) & (tensor != 0)).sum()) / tensor.numel()
            if share > max(MIN_UNDERFLOW_SHARE, self.underflow_shares.get(name, 0.0)):
                self.underflow_shares[name] = share
        return rounded


class _RoundingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Rounds the float32 result of every operation."""

    def __init__(self, round_tensor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._round_tensor = round_tensor

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            return self._round_tensor(result)
        return result
