"""The tensors of a network's modules, computed by OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from u2export.backends.openvino.library import (
    DEVICES,
    PRECISION_HINTS,
    ov,
    read_model,
    translate_errors,
)
from u2export.backends.openvino.runner import copy_output
from u2export.core.arrays import Array, Tensors
from u2export.core.artifact import Artifact
from u2export.core.enums import Device, Precision
from u2export.system.hardware import usable_cpus


def module_tensors(artifact: Artifact, x: Array, names: Sequence[str]) -> tuple[Array, Tensors]:
    """Run a model that has its modules' tensors as further outputs, in float32 arithmetic.

    A tensor that feeds a quantizer is taken after the quantizer.

    Args:
        artifact: the OpenVINO model.
        x: (N,3,H,W) float32 input.
        names: of the modules.

    Returns:
        The saliency, (N,1,H,W) float32, and the tensors by module name.

    Raises:
        ArtifactError: OpenVINO refuses the file.
        ExportError: OpenVINO cannot run it.
    """
    model = read_model(artifact.path)
    module_outputs = _find_module_outputs(model, names)
    properties = {
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[Precision.FP32],
        "INFERENCE_NUM_THREADS": usable_cpus(),
    }
    with translate_errors():
        added = model.add_outputs(list(module_outputs.values()))
        indices = [model.get_result_index(port) for port in added]
        compiled = ov.Core().compile_model(model, DEVICES[Device.CPU], properties)
        request = compiled.create_infer_request()
        request.infer([x])
        saliency, *tensors = [copy_output(request, index) for index in (0, *indices)]
    return saliency, dict(zip(module_outputs, tensors, strict=True))


def _find_module_outputs(model: ov.Model, names: Sequence[str]) -> dict[str, Any]:
    """Find the node outputs of modules: by the node's friendly name, else by the tensor's name."""
    by_node, by_tensor = {}, {}
    for node in model.get_ordered_ops():
        if node.get_output_size():
            by_node[node.get_friendly_name()] = node.output(0)
            by_tensor.update(dict.fromkeys(node.output(0).get_names(), node.output(0)))
    outputs = {name: by_node.get(name, by_tensor.get(name)) for name in names}
    return {
        name: _after_quantizer(output) for name, output in outputs.items() if output is not None
    }


def _after_quantizer(output: Any) -> Any:
    """Follow an output through its quantizer, where that is its only user; as in ONNX files.

    A quantizer from an ONNX file gives integers. Its dequantizer is several operations.
    """
    quantized = _only_user_output(output, {"FakeQuantize"})
    following = quantized
    while following is not None:
        quantized = following
        following = _only_user_output(following, {"Convert", "Subtract", "Multiply"})
    is_real = quantized is not None and quantized.get_element_type().is_real()
    return quantized if is_real else output


def _only_user_output(output: Any, kinds: set[str]) -> Any:
    """Give the output of the only node that takes this one; None if it is of another kind."""
    users = [port.get_node() for port in output.get_target_inputs()]
    fits = len(users) == 1 and users[0].get_type_name() in kinds
    return users[0].output(0) if fits else None
