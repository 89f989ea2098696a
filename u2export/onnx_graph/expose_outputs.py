"""Extra outputs for the modules inside an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper


def expose_module_outputs(model: onnx.ModelProto, modules: Sequence[str]) -> dict[str, str]:
    """Add a float32 output for the tensor of each module.

    Where a tensor goes into a quantizer, the output shows it after the quantizer. That is what the
    next module receives.

    Args:
        model: changed in place. Its nodes or tensors are named after modules.
        modules: names of the modules.

    Returns:
        The new output's name by module. Modules that the model does not name are absent.
    """
    tensors = _module_tensors(model, modules)
    return {module: _add_float_output(model, tensor) for module, tensor in tensors.items()}


def _module_tensors(model: onnx.ModelProto, modules: Sequence[str]) -> dict[str, str]:
    """Find the output tensor of each module, by its own name or by its node's name."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    output_of_node: dict[str, str] = {}
    for node in model.graph.node:
        output_of_node[node.name] = node.output[0]
        for tensor in node.input:
            consumers.setdefault(tensor, []).append(node)
    tensors = {tensor for node in model.graph.node for tensor in node.output}
    module_tensors = {
        module: module if module in tensors else output_of_node.get(module, "")
        for module in modules
    }
    return {
        module: _after_quantizer(tensor, consumers)
        for module, tensor in module_tensors.items()
        if tensor
    }


def _after_quantizer(tensor: str, consumers: Mapping[str, list[onnx.NodeProto]]) -> str:
    """Follow a tensor through its quantizer, if that is its only consumer.

    The quantizer may include a ReLU: it clips values below its range.
    """
    quantizers = consumers.get(tensor, [])
    if len(quantizers) != 1 or quantizers[0].op_type != "QuantizeLinear":
        return tensor
    after_quantizer = consumers.get(quantizers[0].output[0], [])
    dequantizers = [node for node in after_quantizer if node.op_type == "DequantizeLinear"]
    return str(dequantizers[0].output[0]) if dequantizers else tensor


def _add_float_output(model: onnx.ModelProto, tensor: str) -> str:
    """Add an output that casts a tensor to float32, and return its name."""
    name = f"{tensor}_shown"
    cast = helper.make_node("Cast", [tensor], [name], name=name, to=TensorProto.FLOAT)
    model.graph.node.append(cast)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return name
