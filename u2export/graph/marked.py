"""An ONNX graph that gives the tensors of its modules as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper


def mark(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """Let a model give its modules' tensors as float32 outputs.

    A tensor that goes into a quantizer is given as it comes out of it, which is what the next
    module gets.

    Args:
        model: changed in place; its nodes or tensors are named after modules.
        names: of the modules.

    Returns:
        The new outputs' names, by module; a module the model does not name is left out.
    """
    return {name: _shown(model, place) for name, place in _places(model, names).items()}


def _places(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """Find the tensors that hold modules' outputs: by name, else by their node's name."""
    users: dict[str, list[onnx.NodeProto]] = {}
    by_node: dict[str, str] = {}
    for node in model.graph.node:
        by_node[node.name] = node.output[0]
        for name in node.input:
            users.setdefault(name, []).append(node)
    tensors = {name for node in model.graph.node for name in node.output}
    places = {name: name if name in tensors else by_node.get(name, "") for name in names}
    return {name: _dequantized(place, users) for name, place in places.items() if place}


def _dequantized(tensor: str, users: Mapping[str, list[onnx.NodeProto]]) -> str:
    """Follow a tensor through the one quantizer that is all that takes it.

    A ReLU may be part of the quantizer, which clips what is below its range.
    """
    quantizers = users.get(tensor, [])
    if len(quantizers) != 1 or quantizers[0].op_type != "QuantizeLinear":
        return tensor
    after = users.get(quantizers[0].output[0], [])
    dequantizers = [node for node in after if node.op_type == "DequantizeLinear"]
    return str(dequantizers[0].output[0]) if dequantizers else tensor


def _shown(model: onnx.ModelProto, tensor: str) -> str:
    """Add an output that gives a tensor as float32."""
    name = f"{tensor}_shown"
    cast = helper.make_node("Cast", [tensor], [name], name=name, to=TensorProto.FLOAT)
    model.graph.node.append(cast)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return name
