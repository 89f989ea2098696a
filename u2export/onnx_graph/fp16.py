"""Conversion of a graph to half precision, with float32 inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from u2export.errors import ExportError, InputError
from u2export.onnx_graph.versions import IR_VERSIONS

SMALLEST_NORMAL_HALF = 2.0**-14  # smaller values lose digits
_LARGEST_HALF = 65504.0
_HALF_QUANTIZERS_OPSET = 19  # the first opset whose quantizers accept half precision
# Inputs that ONNX requires in float32, whatever the data type: roi and scales of Resize.
_FLOAT32_INPUTS = {"Resize": (1, 2)}


def convert_to_half(model: onnx.ModelProto) -> None:
    """Convert a float32 graph to half precision.

    The graph gets one Cast after each input and one before each output.

    Args:
        model: changed in place.

    Raises:
        InputError: the graph is in half precision already.
        ExportError: a value does not fit into half precision.
    """
    if any(item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer):
        raise InputError("the graph is already in half precision: give --fp16 the fp32 weights")
    float32_tensors = _tensors_that_stay_float32(model)
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT and item.name not in float32_tensors:
            item.CopyFrom(_to_half(item))
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in float32_tensors:
            continue
        for tensor in _float32_attributes(node):
            tensor.CopyFrom(_to_half(tensor))
    _cast_inputs_and_outputs(model)
    del model.graph.value_info[:]


def _tensors_that_stay_float32(model: onnx.ModelProto) -> set[str]:
    return {
        node.input[index]
        for node in model.graph.node
        for index in _FLOAT32_INPUTS.get(node.op_type, ())
        if index < len(node.input)
    }


def _float32_attributes(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            yield attribute.t


def _to_half(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= _LARGEST_HALF:
        raise ExportError(
            f"{tensor.name} holds {largest:g}, more than half precision can ({_LARGEST_HALF:g}): "
            "export it as fp32"
        )
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _cast_inputs_and_outputs(model: onnx.ModelProto) -> None:
    graph = model.graph
    half_names = {value.name: f"{value.name}_half" for value in (*graph.input, *graph.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [half_names.get(name, name) for name in names]
    half_nodes = list(graph.node)
    del graph.node[:]
    for value in graph.input:
        graph.node.append(_cast(value.name, half_names[value.name], TensorProto.FLOAT16))
    graph.node.extend(half_nodes)
    for value in graph.output:
        graph.node.append(_cast(half_names[value.name], value.name, TensorProto.FLOAT))


def _cast(source: str, target: str, data_type: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_to_{target}", to=data_type)


def scales_fit_half(model: onnx.ModelProto) -> bool:
    """Check whether half precision holds all quantizer scales of a graph with all their digits."""
    initializers = {item.name: item for item in model.graph.initializer}
    scales = [
        numpy_helper.to_array(initializers[node.input[1]])
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    return all(float(scale.min()) >= SMALLEST_NORMAL_HALF for scale in scales)


def allow_half_quantizers(model: onnx.ModelProto) -> None:
    """Raise the opset to 19, the first whose quantizers accept half precision.

    Args:
        model: changed in place. A newer opset stays.
    """
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = max(opset.version, _HALF_QUANTIZERS_OPSET)
    model.ir_version = max(model.ir_version, IR_VERSIONS[_HALF_QUANTIZERS_OPSET])
