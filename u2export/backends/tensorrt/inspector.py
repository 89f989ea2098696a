"""What the engine inspector reports of each layer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from u2export.core.enums import Device
from u2export.core.execution import UNKNOWN, Layer

# Keys of a tensor's type in the reports of TensorRT 10, TensorRT 11 and RTX.
_TYPE_KEYS = ("Datatype", "Format/Datatype", "DataType")
_INTEGER = "integer"  # of shapes, not of values
_TYPE_PATTERNS = (
    (re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE), "bf16"),
    (re.compile(r"\b(fp16|half|float16)\b", re.IGNORECASE), "fp16"),
    (re.compile(r"\bu?int8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\b(fp32|float|float32)\b", re.IGNORECASE), "fp32"),
    (re.compile(r"\b(bool|int32|int64)\b", re.IGNORECASE), _INTEGER),
)
# Layer types that move or convert values, or order other layers, and compute nothing.
_DATA_MOVEMENT = re.compile(
    r"reformat|constant|shuffle|concat|copy|cast|identity|noop|slice|^(wait|signal|c?jmp)$",
    re.IGNORECASE,
)
# A fused kernel is named after its operations: `__myl_CastMove_myl0_1`.
_FUSED_KERNEL = re.compile(r"__myl_([A-Za-z]+)_")
# A fused kernel of these operations alone moves or converts values and computes nothing.
_FUSED_DATA_MOVEMENT = re.compile(r"(Cast|Move|Resh|Tran|Slic|Conc)+")


def parse_layer(report: dict[str, Any] | str, io_names: Sequence[str] = ()) -> Layer:
    """Read one layer of the engine inspector.

    Args:
        report: of the layer. A report that is only a name tells no precision.
        io_names: of the engine's input and outputs, which are float32 in any precision.
    """
    if isinstance(report, str):
        report = {"Name": report}
    outputs, inputs = report.get("Outputs") or [], report.get("Inputs") or []
    name, kind = str(report.get("Name", UNKNOWN)), str(report.get("LayerType", UNKNOWN))
    tensors = [*inputs, *outputs]
    inner_tensors = [tensor for tensor in tensors if tensor.get("Name") not in io_names]
    types = sorted({_parse_type(tensor) for tensor in inner_tensors or tensors})
    return Layer(
        name=name,
        kind=kind,
        device=str(Device.CUDA),
        precision=_arithmetic_precision(types, str(report.get("TacticName", ""))),
        moves=_only_moves_data(name, kind) or types == [_INTEGER],
        macs=_count_macs(report, outputs),
    )


def _parse_type(tensor: dict[str, Any]) -> str:
    text = " ".join(str(tensor.get(key, "")) for key in _TYPE_KEYS)
    return next((name for pattern, name in _TYPE_PATTERNS if pattern.search(text)), UNKNOWN)


def _arithmetic_precision(types: list[str], kernel_name: str) -> str:
    """Find a layer's arithmetic from the types of its tensors and the name of its kernel."""
    value_types = [name for name in types if name not in (_INTEGER, UNKNOWN)]
    if not value_types:
        return UNKNOWN
    if value_types == ["fp32"] and "tf32" in kernel_name.lower():
        return "tf32"
    return "int8" if "int8" in value_types else "+".join(value_types)


def _only_moves_data(name: str, kind: str) -> bool:
    fused = _FUSED_KERNEL.search(name)
    return bool(_DATA_MOVEMENT.search(kind) or (fused and _FUSED_DATA_MOVEMENT.fullmatch(fused[1])))


def _count_macs(report: dict[str, Any], outputs: list[dict[str, Any]]) -> int:
    """Count a layer's multiply-adds for one picture: weights times output pixels."""
    weight_count = (report.get("Weights") or {}).get("Count", 0)
    output_pixels = math.prod((outputs[0].get("Dimensions") or [0])[2:]) if outputs else 0
    return int(weight_count) * output_pixels
