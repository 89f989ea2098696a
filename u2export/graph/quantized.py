"""Eight-bit whole numbers in an ONNX graph: quantizers where the runtimes look for them.

A convolution runs in whole numbers where its weights and what it is given come out of dequantizers
and what it gives goes into a quantizer. Pooling, resizing and concatenating keep the scale of what
they are given, so runtimes do them on the whole numbers; tensors that meet in them share a scale.

Two forms come from one recipe: unsigned activations, which use all 256 values for what a ReLU gives
and are what CPUs multiply fastest; and, made of it, signed ones around zero with float32 biases,
the only form TensorRT takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from u2export.errors import InputError
from u2export.graph.fp16 import SMALLEST_HALF
from u2export.graph.tidy import drop_unused

Floats = NDArray[np.float32]
Range = tuple[float, float]
LARGEST = 127  # of a signed whole number, both ways
LEVELS = 255  # steps of an unsigned one
# Their results lie in the range of what they are given, and take its scale.
_SAME_RANGE = frozenset({"MaxPool", "Resize", "Concat"})
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_QUANTIZERS = frozenset({*_PAIR, "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"})
_LEAST = 1e-8  # of a scale: a tensor that is always zero has none
_BIAS_ROOM = 2.0**30  # a bias is a 32-bit whole number, and what is summed up to it needs room too


@dataclass(frozen=True)
class Recipe:
    """How a network is to be computed in whole numbers.

    Attributes:
        ranges: lowest and highest value of each tensor that `measured` names.
        weights: rounded weights (O,I,h,w) int8, by convolution.
        steps: (O,) float32, what one step of each output channel's weights is worth.
        biases: (O,) float32.
        in_float: the convolutions that stay as they are.
    """

    ranges: Mapping[str, Range]
    weights: Mapping[str, NDArray[np.int8]]
    steps: Mapping[str, Floats]
    biases: Mapping[str, Floats]
    in_float: frozenset[str]


@dataclass(frozen=True)
class _Scale:
    """What a tensor's whole numbers mean, and the initializers that hold it."""

    step: float
    zero: int
    names: tuple[str, str]


def layer_name(node: onnx.NodeProto) -> str:
    """The module that a convolution belongs to, as `stage1.rebnconvin` or `side1`."""
    return str(node.name.removesuffix(".conv_s1"))


def convolutions(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The convolutions of a graph of ours, by module."""
    return {layer_name(node): node for node in model.graph.node if node.op_type == "Conv"}


def refuse_quantized(model: onnx.ModelProto) -> None:
    """Refuse a graph that has quantizers already.

    Raises:
        InputError: it has.
    """
    if any(node.op_type in _QUANTIZERS for node in model.graph.node):
        raise InputError("the graph is quantized already: give --int8 the fp32 weights")


def measured(model: onnx.ModelProto) -> list[str]:
    """The tensors whose ranges a recipe must have: those that are made, not moved."""
    tensors = [value.name for value in model.graph.input]
    for node in model.graph.node:
        if node.op_type not in _SAME_RANGE:
            tensors.append(node.output[0])
    outputs = {value.name for value in model.graph.output}
    return [name for name in tensors if name not in outputs]


def with_ranges(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy whose only outputs are the lowest and the highest value of each tensor, in order."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.output[:]
    for tensor in tensors:
        for kind in ("ReduceMin", "ReduceMax"):
            name = f"{tensor}_{kind}"
            node = helper.make_node(kind, [tensor], [name], name=name, keepdims=0)
            found.graph.node.append(node)
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
            found.graph.output.append(value)
    return found


def input_steps(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, float]:
    """What one step of each convolution's unsigned input is worth, by module."""
    scales = _scales(model, ranges)
    return {name: scales[node.input[0]].step for name, node in convolutions(model).items()}


def least_steps(bias: Floats, input_step: float) -> Floats:
    """The steps (O,) that weights must have so that the biases (O,) fit into 32 bits."""
    return np.asarray(np.maximum(np.abs(bias) / (_BIAS_ROOM * input_step), _LEAST), np.float32)


def quantize(model: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """Write a graph in whole numbers, activations unsigned.

    Args:
        model: float32, as `u2export.graph.tidy` leaves it; it is not changed.
        recipe: what to write.

    Returns:
        The same network between quantizers and dequantizers.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    scales = _scales(model, recipe.ranges)
    whole = {name for name in convolutions(model) if name not in recipe.in_float}
    chosen = _to_quantize(model, whole)
    del found.graph.node[:]
    nodes = found.graph.node
    nodes.extend(n for v in model.graph.input if v.name in chosen for n in _pair(v.name, scales))
    for node in model.graph.node:
        layer = layer_name(node)
        parts: dict[int, str] = {}
        if node.op_type == "Conv" and layer in whole:
            weighed = _weighed(found.graph, layer, recipe, scales[node.input[0]].step)
            nodes.extend(weighed)
            parts = {place: made.output[0] for place, made in enumerate(weighed, 1)}
        nodes.append(node)
        nodes[-1].input[:] = [
            parts.get(place, _back(name) if name in chosen else name)
            for place, name in enumerate(node.input)
        ]
        if node.output[0] in chosen:
            nodes.extend(_pair(node.output[0], scales))
    for scale in {scales[tensor].names: scales[tensor] for tensor in sorted(chosen)}.values():
        step_name, zero_name = scale.names
        found.graph.initializer.append(_tensor(np.float32(scale.step), step_name))
        found.graph.initializer.append(_tensor(np.uint8(scale.zero), zero_name))
    del found.graph.value_info[:]
    drop_unused(found)
    return found


def signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The signed form of what `quantize` wrote: the only one TensorRT takes.

    Activations become signed and symmetric, in which what is never negative has 128 values instead
    of 256; biases become float32. Weights stay what they are. Steps become such as half precision
    holds, for that is what TensorRT is given where it holds them all.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    values = {item.name: item for item in found.graph.initializer}
    kept = []
    for node in found.graph.node:
        zero = values[node.input[2]] if node.op_type in _PAIR else None
        if node.op_type == "DequantizeLinear" and zero is not None:
            whole = values.get(node.input[0])
            if zero.data_type == TensorProto.INT32 and whole is not None:
                worth = numpy_helper.to_array(values[node.input[1]])
                real = numpy_helper.to_array(whole).astype(np.float64) * worth
                found.graph.initializer.append(_tensor(real.astype(np.float32), node.output[0]))
                continue
        if zero is not None and zero.data_type == TensorProto.UINT8:
            step, middle = values[node.input[1]], int(numpy_helper.to_array(zero))
            reach = float(numpy_helper.to_array(step)) * max(middle, LEVELS - middle)
            step.CopyFrom(_tensor(_halved(np.float32(reach / LARGEST)), step.name))
            zero.CopyFrom(_tensor(np.int8(0), zero.name))
        elif zero is not None and zero.data_type == TensorProto.INT8:
            step = values[node.input[1]]
            step.CopyFrom(_tensor(_halved(numpy_helper.to_array(step)), step.name))
        kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del found.graph.node[:]
    found.graph.node.extend(kept)
    drop_unused(found)
    return found


def whole_layers(model: onnx.ModelProto, in_float: Iterable[str]) -> set[str]:
    """The convolutions that every runtime does in whole numbers, with these in float32.

    onnxruntime does so where what they give is rounded too; OpenVINO everywhere.
    """
    whole = convolutions(model).keys() - set(in_float)
    chosen = _to_quantize(model, whole)
    makers = {node.output[0]: node for node in model.graph.node}
    found = set()
    for tensor in chosen & makers.keys():
        node = makers[tensor]
        if node.op_type == "Relu":
            node = makers[node.input[0]]
        if node.op_type == "Conv" and layer_name(node) in whole:
            found.add(layer_name(node))
    return found


def _halved(step: Floats | np.float32) -> Floats:
    """A step as half precision holds it; as it is where it would lose digits."""
    half = np.asarray(step, np.float16).astype(np.float32)
    return np.where(np.asarray(step) >= SMALLEST_HALF, half, step).astype(np.float32)


def _back(tensor: str) -> str:
    return f"{tensor}_back"


def _pair(tensor: str, scales: Mapping[str, _Scale]) -> list[onnx.NodeProto]:
    """A quantizer and a dequantizer after a tensor."""
    whole, names = f"{tensor}_whole", scales[tensor].names
    return [
        helper.make_node("QuantizeLinear", [tensor, *names], [whole], name=whole),
        helper.make_node("DequantizeLinear", [whole, *names], [_back(tensor)], name=_back(tensor)),
    ]


def _weighed(
    graph: onnx.GraphProto, layer: str, recipe: Recipe, input_step: float
) -> list[onnx.NodeProto]:
    """Put a convolution's rounded weights and bias into a graph, and give their dequantizers."""
    steps = recipe.steps[layer]
    worth = (steps * np.float32(input_step)).astype(np.float32)
    bias = np.rint(recipe.biases[layer].astype(np.float64) / worth).astype(np.int32)
    made = []
    for what, values, step in (("weight", recipe.weights[layer], steps), ("bias", bias, worth)):
        names = [f"{layer}.{what}_{part}" for part in ("whole", "step", "zero")]
        zeros = np.zeros(len(step), values.dtype)
        for array, name in zip((values, step, zeros), names, strict=True):
            graph.initializer.append(_tensor(array, name))
        back = _back(f"{layer}.{what}")
        made.append(helper.make_node("DequantizeLinear", names, [back], name=back, axis=0))
    return made


def _to_quantize(model: onnx.ModelProto, whole: set[str]) -> set[str]:
    """The tensors that convolutions in whole numbers need, and what these are made of."""
    chosen: set[str] = set()
    for node in reversed(model.graph.node):
        passed_on = node.op_type in _SAME_RANGE or node.op_type == "Add"
        needs = node.op_type == "Conv" and layer_name(node) in whole
        if needs:
            chosen.add(node.input[0])
        elif passed_on and node.output[0] in chosen:
            chosen.update(_data_inputs(node))
    return chosen


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input[:1] if node.op_type == "Resize" else node.input)


def _scales(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, _Scale]:
    """The scale of every tensor; those that meet in a node which keeps its range share one."""
    leader: dict[str, str] = {}

    def find(tensor: str) -> str:
        while leader.setdefault(tensor, tensor) != tensor:
            tensor = leader[tensor]
        return tensor

    for node in model.graph.node:
        if node.op_type in _SAME_RANGE:
            for tensor in _data_inputs(node):
                leader[find(tensor)] = find(node.output[0])
    joined: dict[str, Range] = {}
    for tensor, (low, high) in ranges.items():
        before = joined.get(find(tensor), (0.0, 0.0))
        joined[find(tensor)] = min(low, before[0]), max(high, before[1])
    tensors = [*ranges, *(t for t in list(leader) if find(t) in joined)]
    return {t: _scale(find(t), *joined[find(t)]) for t in tensors}


def _scale(name: str, low: float, high: float) -> _Scale:
    step = max(high - low, _LEAST * LEVELS) / LEVELS
    return _Scale(step, round(-low / step), (f"{name}_step", f"{name}_zero"))


def _tensor(values: NDArray[np.generic] | np.generic, name: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)
