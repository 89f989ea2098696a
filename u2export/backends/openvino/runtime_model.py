"""What OpenVINO's runtime model reports of each layer."""

from __future__ import annotations

import math
from typing import Any

from u2export.backends.openvino.library import DEVICES, ov
from u2export.core.execution import UNKNOWN, Layer

_DEVICE_NAMES = {name: str(device) for device, name in DEVICES.items()}
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
# Layer types that move, convert or reorder values and compute nothing.
_DATA_MOVEMENT = frozenset(
    {"Const", "Concatenation", "Convert", "Input", "MemoryInput", "MemoryOutput", "Output"}
    | {"Reorder", "Reshape", "ShapeOf", "Split", "StridedSlice", "Transpose"}
)
_LAYER_KEYS = ("layerType", "originalLayersNames", "runtimePrecision")  # read of each layer


def parse_layers(compiled: ov.CompiledModel) -> tuple[Layer, ...]:
    """Read every layer of a compiled model, in the order of execution."""
    names = compiled.get_property("EXECUTION_DEVICES")
    device = ", ".join(_DEVICE_NAMES.get(name.split(".")[0], name) for name in names)
    operations = compiled.get_runtime_model().get_ordered_ops()
    return tuple(_parse_layer(node, device) for node in operations)


def _parse_layer(node: Any, device: str) -> Layer:
    rt_info = node.get_rt_info()
    info = {key: str(rt_info[key].value) for key in _LAYER_KEYS if key in rt_info}
    kind = info.get("layerType", node.get_type_name())
    # Several layers of the file may be fused. The last of them gives the module's result.
    name = info.get("originalLayersNames", "").split(",")[-1] or node.get_friendly_name()
    return Layer(
        name=name,
        kind=kind,
        device=device,
        precision=_PRECISIONS.get(info.get("runtimePrecision", ""), UNKNOWN),
        moves=kind in _DATA_MOVEMENT,
        macs=_count_macs(node, kind),
    )


def _count_macs(node: Any, kind: str) -> int:
    """Count the multiply-adds of a convolution for one call; 0 for other layers."""
    if "Convolution" not in kind or len(node.inputs()) < 2:
        return 0
    kernel_shape: list[int] = list(node.input(1).get_shape())  # (out, in, height, width)
    output_shape: list[int] = node.get_output_partial_shape(0).get_min_shape()
    lengths = [max(1, length) for length in output_shape]  # a free batch has length 0
    return math.prod(kernel_shape[1:]) * math.prod(lengths)
