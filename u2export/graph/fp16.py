"""The whole graph in half precision, with float32 at both ends."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from u2export.errors import ExportError, InputError
from u2export.onnxfile import IR_VERSIONS

LARGEST_HALF = 65504.0
SMALLEST_HALF = 2.0**-14  # with all of its digits
HALF_QUANTIZERS = 19  # the opset whose quantizers take half precision
# Inputs that ONNX wants in float32 whatever the data: Resize's roi and scales.
FLOAT32_INPUTS = {"Resize": (1, 2)}


def to_half(model: onnx.ModelProto) -> None:
    """Convert a float32 graph in place: one Cast after each input, one before each output.

    Raises:
        InputError: the graph is in half precision already.
        ExportError: a value does not fit into half precision.
    """
    if any(item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer):
        raise InputError("the graph is already in half precision: give --fp16 the fp32 weights")
    keep = {
        node.input[index]
        for node in model.graph.node
        for index in FLOAT32_INPUTS.get(node.op_type, ())
        if index < len(node.input)
    }
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT and item.name not in keep:
            item.CopyFrom(_half(item))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                if node.op_type == "Constant" and node.output[0] in keep:
                    continue
                attribute.t.CopyFrom(_half(attribute.t))
    _cast_ends(model)
    del model.graph.value_info[:]


def holds_quantizers(model: onnx.ModelProto) -> bool:
    """Whether half precision holds the steps of a graph's quantizers with all of its digits."""
    values = {item.name: item for item in model.graph.initializer}
    steps = [
        numpy_helper.to_array(values[node.input[1]])
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    return all(float(step.min()) >= SMALLEST_HALF for step in steps)


def let_quantizers_be_half(model: onnx.ModelProto) -> None:
    """Let quantizers take and give half precision, which opset 19 is the first to allow."""
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = max(opset.version, HALF_QUANTIZERS)
    model.ir_version = max(model.ir_version, IR_VERSIONS[HALF_QUANTIZERS])


def _half(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= LARGEST_HALF:
        raise ExportError(
            f"{tensor.name} holds {largest:g}, more than half precision can ({LARGEST_HALF:g}): "
            "export it as fp32"
        )
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _cast_ends(model: onnx.ModelProto) -> None:
    graph = model.graph
    inner = {value.name: f"{value.name}_half" for value in (*graph.input, *graph.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    nodes = list(graph.node)
    del graph.node[:]
    for value in graph.input:
        graph.node.append(_cast(value.name, inner[value.name], TensorProto.FLOAT16))
    graph.node.extend(nodes)
    for value in graph.output:
        graph.node.append(_cast(inner[value.name], value.name, TensorProto.FLOAT))


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_to_{target}", to=kind)
