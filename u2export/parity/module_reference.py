"""The PyTorch network on one picture, module by module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from u2export.core.arrays import Array, Tensors
from u2export.network.u2net import ConvBlock, U2Net

# A relative error that is no fault: a module's own float32 rounding, times NOISE_FACTOR, and never
# less than MIN_NOISE. The rounding is measured on the picture, against float64. It is up to 1.3e-4
# on real u2netp weights. Correct fp32 exports reach 3.7 times the rounding (onnxruntime and
# OpenVINO, real and demo weights, 14 pictures).
MIN_NOISE = 1e-5
NOISE_FACTOR = 6
_GRAPH_SIZE = 32  # pixels a side; which module feeds which is the same at every size

_Hook = Callable[[str, Any, torch.Tensor], None]


class ModuleReference:
    """The outputs that a candidate's modules are compared with.

    They are PyTorch's on one picture, or those of another file after `use_tensors`.

    Attributes:
        inputs: per module, the modules whose outputs go into it.
        names: the modules in execution order.
        outputs: each module's output.
        noise: per module, the relative error that float32's rounding explains.
        saliency: (1,1,H,W) float32.
    """

    def __init__(self, network: U2Net, x: Array) -> None:
        """Run the network, and measure its rounding.

        Args:
            network: in evaluation mode.
            x: (1,3,H,W) float32 network input.
        """
        self._network, self._x = network, torch.tensor(x)
        self._from_file = False
        self.inputs = _module_inputs(network)
        self.outputs: dict[str, Array] = {}
        self.noise: dict[str, float] = {}
        with _hooked(network, tuple(self.inputs), self._record_output):
            self.saliency = self._run()
        self.names = tuple(self.outputs)
        exact = copy.deepcopy(network).double()
        with _hooked(exact, self.names, self._measure_noise), torch.inference_mode():
            exact(self._x.double())

    def use_tensors(self, saliency: Array, tensors: Tensors) -> None:
        """Compare with another file's tensors from now on.

        Args:
            saliency: the file's, (1,1,H,W).
            tensors: the file's, by module; those of another shape are left out.
        """
        own = self.outputs
        self.outputs = {
            name: tensors[name]
            for name in self.names
            if name in tensors and tensors[name].shape == own[name].shape
        }
        self.saliency, self._from_file = saliency, True

    def inject(self, name: str, tensor: Array) -> Array:
        """Replace a module's output, and run the modules after it.

        Returns:
            The saliency, (1,1,H,W).
        """
        before = self.names[: self.names.index(name)]
        known = {module: self.outputs[module] for module in before if module in self.outputs}
        with _replaced_outputs(self._network, {**known, name: tensor}):
            return self._run()

    def expected_saliency(self, name: str) -> Array:
        """What `inject` gives for the reference's own output of a module, (1,1,H,W)."""
        return self.inject(name, self.outputs[name]) if self._from_file else self.saliency

    def _record_output(self, name: str, args: Any, result: torch.Tensor) -> None:
        self.outputs[name] = result.numpy()

    def _measure_noise(self, name: str, args: Any, result: torch.Tensor) -> None:
        rounding, _ = relative_errors(result.numpy(), self.outputs[name])
        self.noise[name] = max(MIN_NOISE, NOISE_FACTOR * rounding)

    def _run(self) -> Array:
        with torch.inference_mode():
            y: Array = self._network(self._x).numpy()
        return y


def relative_errors(expected: Array, actual: Array) -> tuple[float, float]:
    """Largest and mean absolute difference, by the expected tensor's largest and mean value."""
    error, size = np.abs(actual - expected), np.abs(expected)
    return _ratio(error.max(), size.max()), _ratio(error.mean(), size.mean())


def _ratio(error: float, size: float) -> float:
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return float(error / size)


def _module_inputs(network: U2Net) -> dict[str, tuple[str, ...]]:
    """Name the modules that feed each module, in execution order.

    PyTorch's graph of gradients shows them, through all operations between modules: pooling,
    resizing, adding, concatenating.
    """
    makers: dict[Any, str] = {}  # the module that made a tensor, by the tensor's gradient node
    inputs: dict[str, tuple[str, ...]] = {}

    def record(name: str, args: Any, result: torch.Tensor) -> None:
        inputs[name] = tuple(dict.fromkeys(_makers_before(args[0].grad_fn, makers)))
        makers[result.grad_fn] = name

    names = tuple(name for name, module in network.named_modules() if _is_compared(name, module))
    with torch.enable_grad(), _hooked(network, names, record):
        network(torch.zeros(1, 3, _GRAPH_SIZE, _GRAPH_SIZE))
    return inputs


def _is_compared(name: str, module: nn.Module) -> bool:
    return isinstance(module, ConvBlock) or (isinstance(module, nn.Conv2d) and "." not in name)


def _makers_before(grad_fn: Any, makers: Mapping[Any, str]) -> Iterator[str]:
    """Walk the graph of gradients backwards to the nearest modules."""
    if grad_fn in makers:
        yield makers[grad_fn]
    elif grad_fn is not None:
        for before, _ in grad_fn.next_functions:
            yield from _makers_before(before, makers)


@contextmanager
def _hooked(network: nn.Module, names: tuple[str, ...], hook: _Hook) -> Iterator[None]:
    """Call `hook(name, arguments, result)` after each of these modules."""
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, args, result, name=name: hook(name, args, result)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced_outputs(network: nn.Module, outputs: Mapping[str, Array]) -> Iterator[None]:
    """Let modules return these tensors and compute nothing."""
    for name, values in outputs.items():
        tensor = torch.from_numpy(values)
        network.get_submodule(name).forward = lambda x, tensor=tensor: tensor
    try:
        yield
    finally:
        for name in outputs:
            del network.get_submodule(name).forward
