"""What onnxruntime's profiler reports of each kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from u2export.backends.onnx.session import PROVIDERS
from u2export.core.execution import UNKNOWN, Layer

_DEVICE_NAMES = {provider: str(device) for device, provider in PROVIDERS.items()}
# Element types in onnxruntime's profile, as precisions.
_PRECISIONS = {
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "double": "fp64",
    "int8": "int8",
    "uint8": "int8",
}
# Kernels that move, convert or reorder values and compute nothing.
_DATA_MOVEMENT = frozenset(
    {"Cast", "Concat", "DequantizeLinear", "Identity", "MemcpyFromHost", "MemcpyToHost"}
    | {"QLinearConcat", "QuantizeLinear", "ReorderInput"}
    | {"ReorderOutput", "Reshape", "Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Gather"}
)
_KERNEL_EVENT = "_kernel_time"  # ends the names of the profile's events that are kernels
_TypedShape = tuple[str, list[int]]  # element type and shape of a tensor
_INT8_KERNEL_TAPS = 9  # the profile has no weights of quantized convolutions; all are 3x3


def parse_profile(events: Sequence[dict[str, Any]]) -> tuple[Layer, ...]:
    """Read the kernels of a profile, in the order of execution.

    Args:
        events: the profile file's list.
    """
    return tuple(
        parse_kernel(event["name"], event["args"])
        for event in events
        if event.get("cat") == "Node"
        and "op_name" in event["args"]
        and event["name"].endswith(_KERNEL_EVENT)
    )


def parse_kernel(name: str, event_args: dict[str, Any]) -> Layer:
    """Read one kernel of a profile.

    Args:
        name: of the event.
        event_args: of the event: operator, provider, and types with shapes.
    """
    kind, provider = event_args["op_name"], event_args["provider"]
    inputs = _typed_shapes(event_args["input_type_shape"])
    outputs = _typed_shapes(event_args["output_type_shape"])
    types = [type_name for type_name, _ in (*inputs, *outputs)]
    precisions = [_PRECISIONS[name] for name in types if name in _PRECISIONS]
    return Layer(
        name=name.removesuffix(_KERNEL_EVENT),
        kind=kind,
        device=_DEVICE_NAMES.get(provider, provider),
        precision=precisions[0] if precisions else UNKNOWN,
        # a kernel of other types computes no values: int64 shapes, for instance
        moves=kind in _DATA_MOVEMENT or (bool(types) and not precisions),
        macs=_count_macs(kind, inputs, outputs),
    )


def _typed_shapes(tensors: Sequence[dict[str, list[int]]]) -> list[_TypedShape]:
    return [next(iter(tensor.items())) for tensor in tensors if tensor]


def _count_macs(kind: str, inputs: list[_TypedShape], outputs: list[_TypedShape]) -> int:
    """Count the multiply-adds of a convolution; 0 for other kernels."""
    if not outputs:
        return 0
    output_shape = outputs[0][1]
    if kind == "QLinearConv":
        return _INT8_KERNEL_TAPS * _input_channels(inputs, output_shape) * math.prod(output_shape)
    if "Conv" in kind and len(inputs) > 1:
        kernel_shape = inputs[1][1]  # (out, in, height, width)
        return math.prod(kernel_shape[1:]) * math.prod(output_shape)
    return 0


def _input_channels(inputs: list[_TypedShape], output_shape: list[int]) -> int:
    """Count the input channels of a quantized convolution.

    The layout is NHWC if the output's last axis is as long as the list of scales, else NCHW.
    """
    scale_counts = [shape[0] for kind, shape in inputs if kind == "float" and len(shape) == 1]
    channels_last = not scale_counts or output_shape[-1] == scale_counts[0]
    return inputs[0][1][-1 if channels_last else 1]
