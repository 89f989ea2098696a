"""Quantization to int8 with QDQ nodes, placed where the runtimes look for them.

A runtime computes a convolution in int8 if it lies between quantizers: its weights and its input
come out of dequantizers, its output goes into a quantizer. Pooling, resizing and concatenation
keep the scale of their inputs, so runtimes do them on int8 values. Tensors that meet in such a
node share one scale.

One recipe gives two forms:

- Unsigned: activations are uint8. They use all 256 values for the output of a ReLU, and CPUs
  multiply them fastest.
- Signed: made from the unsigned form. Activations are int8 and symmetric, biases are float32.
  TensorRT accepts only this form.

These passes name the tensors and nodes that they add. The names are part of the artifact's bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from u2export.errors import InputError
from u2export.onnx_graph.cleanup import drop_unused
from u2export.onnx_graph.fp16 import SMALLEST_NORMAL_HALF

FloatArray = NDArray[np.float32]
ValueRange = tuple[float, float]
INT8_MAX = 127  # in both directions: -128 is not used
_UINT8_MAX = 255
# Operators whose output lies in the range of their inputs, so that it has the same scale.
_SCALE_PRESERVING = frozenset({"MaxPool", "Resize", "Concat"})
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_QUANTIZED_OPERATORS = frozenset({*_QDQ, "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"})
_SMALLEST_SCALE = 1e-8  # for tensors that are always zero
_BIAS_LIMIT = 2.0**30  # a bias is int32, and the products added to it need the rest of the range


@dataclass(frozen=True)
class QdqRecipe:
    """Everything that `quantize` writes into a graph. The mappings go by layer.

    Attributes:
        ranges: lowest and highest value of each tensor that `tensors_to_measure` names.
        weights: (O,I,h,w) int8.
        weight_scales: (O,) float32, one scale per output channel.
        biases: (O,) float32.
        in_float: layers that stay in float32.
    """

    ranges: Mapping[str, ValueRange]
    weights: Mapping[str, NDArray[np.int8]]
    weight_scales: Mapping[str, FloatArray]
    biases: Mapping[str, FloatArray]
    in_float: frozenset[str]


def refuse_quantized(model: onnx.ModelProto) -> None:
    """Refuse a graph that is quantized already.

    Raises:
        InputError: the graph has quantizers.
    """
    if any(node.op_type in _QUANTIZED_OPERATORS for node in model.graph.node):
        raise InputError("the graph is quantized already: give --int8 the fp32 weights")


def tensors_to_measure(model: onnx.ModelProto) -> list[str]:
    """List the tensors whose ranges a recipe needs: those that nodes compute, not move."""
    tensors = [value.name for value in model.graph.input]
    tensors += [n.output[0] for n in model.graph.node if n.op_type not in _SCALE_PRESERVING]
    outputs = {value.name for value in model.graph.output}
    return [tensor for tensor in tensors if tensor not in outputs]


def with_range_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """Copy a graph and replace its outputs by the lowest and the highest value of each tensor.

    Args:
        model: not changed.
        tensors: to be measured.

    Returns:
        A graph with two scalar outputs per tensor, in the order of the tensors.
    """
    measured = _copy(model)
    del measured.graph.output[:]
    for tensor in tensors:
        for operator in ("ReduceMin", "ReduceMax"):
            name = f"{tensor}_{operator}"
            node = helper.make_node(operator, [tensor], [name], name=name, keepdims=0)
            measured.graph.node.append(node)
            output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
            measured.graph.output.append(output)
    return measured


def input_scales(model: onnx.ModelProto, ranges: Mapping[str, ValueRange]) -> dict[str, float]:
    """Compute the scale of each convolution's unsigned input, by layer."""
    activations = _activation_parameters(model, ranges)
    return {layer: activations[node.input[0]].scale for layer, node in _convolutions(model).items()}


def smallest_scales_for_bias(bias: FloatArray, input_scale: float) -> FloatArray:
    """Compute the smallest weight scales (O,) with which the biases (O,) fit into 32 bits."""
    scales = np.maximum(np.abs(bias) / (_BIAS_LIMIT * input_scale), _SMALLEST_SCALE)
    return np.asarray(scales, np.float32)


def quantize(model: onnx.ModelProto, recipe: QdqRecipe) -> onnx.ModelProto:
    """Write the unsigned int8 form of a graph.

    Args:
        model: float32, as `u2export.onnx_graph.cleanup` leaves it. It is not changed.
        recipe: what to write.

    Returns:
        The same network with quantizers and dequantizers.
    """
    quantized = _copy(model)
    graph = quantized.graph
    del graph.node[:]
    layers = _convolutions(model).keys() - recipe.in_float
    tensors = _tensors_to_quantize(model, layers)
    activations = _activation_parameters(model, recipe.ranges)
    for value in model.graph.input:
        if value.name in tensors:
            graph.node.extend(_quantizer_and_dequantizer(value.name, activations[value.name]))
    for node in model.graph.node:
        dequantizers = []
        if node.op_type == "Conv" and _layer_name(node) in layers:
            input_scale = activations[node.input[0]].scale
            dequantizers = _add_weight_and_bias(graph, _layer_name(node), recipe, input_scale)
        graph.node.extend([*dequantizers, node])
        graph.node[-1].input[:] = _new_inputs(node, tensors, dequantizers)
        if node.output[0] in tensors:
            output = node.output[0]
            graph.node.extend(_quantizer_and_dequantizer(output, activations[output]))
    _add_activation_parameters(graph, [activations[tensor] for tensor in sorted(tensors)])
    del graph.value_info[:]
    drop_unused(quantized)
    return quantized


def _new_inputs(
    node: onnx.NodeProto, tensors: Collection[str], dequantizers: list[onnx.NodeProto]
) -> list[str]:
    """Connect a node to its dequantized inputs. `dequantizers` belong to its weight and bias."""
    inputs = [_dequantized_name(name) if name in tensors else name for name in node.input]
    for index, dequantizer in enumerate(dequantizers, 1):
        inputs[index] = dequantizer.output[0]
    return inputs


def _quantizer_and_dequantizer(
    tensor: str, activation: _ActivationParameters
) -> list[onnx.NodeProto]:
    quantized, dequantized = f"{tensor}_whole", _dequantized_name(tensor)
    names = (activation.scale_name, activation.zero_point_name)
    return [
        helper.make_node("QuantizeLinear", [tensor, *names], [quantized], name=quantized),
        helper.make_node("DequantizeLinear", [quantized, *names], [dequantized], name=dequantized),
    ]


def _add_weight_and_bias(
    graph: onnx.GraphProto, layer: str, recipe: QdqRecipe, input_scale: float
) -> list[onnx.NodeProto]:
    """Add a convolution's quantized weight and bias to a graph, and return their dequantizers."""
    weight_scale = recipe.weight_scales[layer]
    bias_scale = (weight_scale * np.float32(input_scale)).astype(np.float32)
    bias = np.rint(recipe.biases[layer].astype(np.float64) / bias_scale).astype(np.int32)
    return [
        _add_parameter(graph, f"{layer}.weight", recipe.weights[layer], weight_scale),
        _add_parameter(graph, f"{layer}.bias", bias, bias_scale),
    ]


def _add_parameter(
    graph: onnx.GraphProto, name: str, values: NDArray[np.signedinteger], scale: FloatArray
) -> onnx.NodeProto:
    """Add a parameter with a scale per output channel to a graph, and return its dequantizer."""
    zero_point = np.zeros(len(scale), values.dtype)
    inputs = [f"{name}_whole", f"{name}_step", f"{name}_zero"]
    for array, initializer in zip((values, scale, zero_point), inputs, strict=True):
        graph.initializer.append(_tensor(array, initializer))
    output = _dequantized_name(name)
    return helper.make_node("DequantizeLinear", inputs, [output], name=output, axis=0)


def _add_activation_parameters(
    graph: onnx.GraphProto, activations: Iterable[_ActivationParameters]
) -> None:
    for activation in dict.fromkeys(activations):  # tensors may share their parameters
        graph.initializer.append(_tensor(np.float32(activation.scale), activation.scale_name))
        zero_point = np.uint8(activation.zero_point)
        graph.initializer.append(_tensor(zero_point, activation.zero_point_name))


def to_signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the unsigned int8 form to the signed form, the only one that TensorRT accepts.

    Activations become int8 and symmetric. A tensor that is never negative then has 128 values
    instead of 256. Biases become float32, weights stay int8. TensorRT may receive the scales in
    half precision, so they are rounded to it where it holds all their digits.

    Args:
        model: from `quantize`. It is not changed.
    """
    signed = _copy(model)
    graph = signed.graph
    initializers = {item.name: item for item in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type in _QDQ:
            scale, zero_point = (initializers[name] for name in node.input[1:])
            values = initializers.get(node.input[0])
            if zero_point.data_type == TensorProto.INT32 and values is not None:
                graph.initializer.append(_float_bias(node.output[0], values, scale))
                continue
            _make_signed(scale, zero_point)
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(signed)
    return signed


def _float_bias(name: str, values: TensorProto, scale: TensorProto) -> TensorProto:
    bias = numpy_helper.to_array(values).astype(np.float64) * numpy_helper.to_array(scale)
    return _tensor(bias.astype(np.float32), name)


def _make_signed(scale: TensorProto, zero_point: TensorProto) -> None:
    """Change a scale and a zero point from uint8 to int8, in place; of int8, round the scale."""
    new_scale = numpy_helper.to_array(scale)
    if zero_point.data_type == TensorProto.UINT8:
        middle = int(numpy_helper.to_array(zero_point))
        largest_value = float(new_scale) * max(middle, _UINT8_MAX - middle)
        new_scale = np.asarray(largest_value / INT8_MAX, np.float32)
        zero_point.CopyFrom(_tensor(np.int8(0), zero_point.name))
    if zero_point.data_type == TensorProto.INT8:
        scale.CopyFrom(_tensor(_round_to_half(new_scale), scale.name))


def _round_to_half(scale: FloatArray) -> FloatArray:
    """Round scales to half precision, but for those that would lose digits."""
    rounded = scale.astype(np.float16).astype(np.float32)
    return np.where(scale >= SMALLEST_NORMAL_HALF, rounded, scale).astype(np.float32)


def int8_layers(model: onnx.ModelProto, in_float: Iterable[str]) -> set[str]:
    """List the convolutions that every runtime computes in int8.

    OpenVINO computes all quantized convolutions in int8. onnxruntime does so only where the output
    is quantized too.

    Args:
        model: float32.
        in_float: layers that stay in float32.
    """
    layers = _convolutions(model).keys() - set(in_float)
    tensors = _tensors_to_quantize(model, layers)
    producers = {node.output[0]: node for node in model.graph.node}
    in_int8 = set()
    for tensor in tensors & producers.keys():
        node = producers[tensor]
        if node.op_type == "Relu":
            node = producers[node.input[0]]
        if node.op_type == "Conv" and _layer_name(node) in layers:
            in_int8.add(_layer_name(node))
    return in_int8


def _tensors_to_quantize(model: onnx.ModelProto, layers: Collection[str]) -> set[str]:
    """List the inputs of int8 convolutions, and the tensors they are put together from."""
    tensors: set[str] = set()
    for node in reversed(model.graph.node):
        combines = node.op_type in _SCALE_PRESERVING or node.op_type == "Add"
        if node.op_type == "Conv" and _layer_name(node) in layers:
            tensors.add(node.input[0])
        elif combines and node.output[0] in tensors:
            tensors.update(_data_inputs(node))
    return tensors


@dataclass(frozen=True)
class _ActivationParameters:
    """Scale and zero point of uint8 tensors, and the initializers that hold them."""

    scale: float
    zero_point: int
    scale_name: str
    zero_point_name: str


def _activation_parameters(
    model: onnx.ModelProto, ranges: Mapping[str, ValueRange]
) -> dict[str, _ActivationParameters]:
    """Compute scale and zero point of every tensor from the measured ranges."""
    groups = _scale_groups(model)
    group_ranges: dict[str, ValueRange] = {}
    for tensor, (low, high) in ranges.items():
        group = groups.get(tensor, tensor)
        group_low, group_high = group_ranges.get(group, (0.0, 0.0))
        group_ranges[group] = min(low, group_low), max(high, group_high)
    parameters = {
        group: _range_parameters(group, low, high) for group, (low, high) in group_ranges.items()
    }
    group_of = {tensor: groups.get(tensor, tensor) for tensor in (*ranges, *groups)}
    return {tensor: parameters[group] for tensor, group in group_of.items() if group in parameters}


def _range_parameters(name: str, low: float, high: float) -> _ActivationParameters:
    scale = max(high - low, _SMALLEST_SCALE * _UINT8_MAX) / _UINT8_MAX
    return _ActivationParameters(scale, round(-low / scale), f"{name}_step", f"{name}_zero")


def _scale_groups(model: onnx.ModelProto) -> dict[str, str]:
    """Group the tensors that meet in a node which keeps their scale.

    Returns:
        For each tensor, the one that its group is named after.
    """
    parents: dict[str, str] = {}

    def root(tensor: str) -> str:
        while parents.setdefault(tensor, tensor) != tensor:
            tensor = parents[tensor]
        return tensor

    for node in model.graph.node:
        if node.op_type in _SCALE_PRESERVING:
            for tensor in _data_inputs(node):
                parents[root(tensor)] = root(node.output[0])
    return {tensor: root(tensor) for tensor in list(parents)}


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    """List the inputs that are data. The other inputs of a Resize are sizes."""
    return list(node.input[:1] if node.op_type == "Resize" else node.input)


def _convolutions(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {_layer_name(node): node for node in model.graph.node if node.op_type == "Conv"}


def _layer_name(node: onnx.NodeProto) -> str:
    """Name the module of a convolution, such as `stage1.rebnconvin` or `side1`."""
    return str(node.name.removesuffix(".conv_s1"))


def _dequantized_name(tensor: str) -> str:
    return f"{tensor}_back"


def _tensor(values: NDArray[np.generic] | np.generic, name: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
