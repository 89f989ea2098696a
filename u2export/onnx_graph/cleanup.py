"""Passes that make a traced graph small, batch-free, reproducible and readable."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
import onnxsim
from onnx import numpy_helper

from u2export.errors import ExportError
from u2export.onnx_graph.versions import IR_VERSIONS

_CHECK_INPUTS = 2  # random inputs on which onnxsim compares the graph before and after


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Run onnxsim with its comparison on.

    Raises:
        ExportError: the simplified graph computes something else.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        simplified, is_same = onnxsim.simplify(model, check_n=_CHECK_INPUTS)
    if not is_same:
        raise ExportError("onnxsim changed what the network computes")
    result: onnx.ModelProto = simplified
    return result


def resize_by_scales(model: onnx.ModelProto) -> None:
    """Replace the sizes of every Resize by constant scales.

    Sizes contain the batch, scales do not. All sizes are multiples of 32 pixels, so the scales are
    whole powers of two and exact.

    Args:
        model: changed in place.

    Raises:
        ExportError: the scales of a Resize are unknown or not whole.
    """
    shapes = _static_shapes(model)
    initializer_names: dict[tuple[float, ...], str] = {}
    for node in model.graph.node:
        if node.op_type == "Resize":
            scales = _resize_scales(node, shapes)
            name = f"scales_{int(scales[-2])}x{int(scales[-1])}"
            del node.input[1:]
            node.input.extend(["", initializer_names.setdefault(scales, name)])
    for scales, name in initializer_names.items():
        array = np.asarray(scales, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    drop_unused(model)


def _resize_scales(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> tuple[float, ...]:
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    if (
        before is None
        or after is None
        or any(new % old for new, old in zip(after, before, strict=True))
    ):
        raise ExportError(f"the scales of {node.name} cannot be told: {before} to {after}")
    return tuple(float(new / old) for new, old in zip(after, before, strict=True))


def _static_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Infer the shapes of all tensors whose shape is static."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if all(dimension.HasField("dim_value") for dimension in dimensions):
            shapes[value.name] = [dimension.dim_value for dimension in dimensions]
    return shapes


def set_batch(model: onnx.ModelProto, batch: int | None) -> None:
    """Set the batch of inputs and outputs.

    Call `resize_by_scales` first. After it, no other part of a U²-Net graph contains the batch.

    Args:
        model: changed in place.
        batch: None stands for a free dimension called `batch`.
    """
    for value in (*model.graph.input, *model.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        if batch is None:
            dimension.dim_param = "batch"
        else:
            dimension.dim_value = batch
    del model.graph.value_info[:]


def name_after_modules(model: onnx.ModelProto) -> None:
    """Name nodes and tensors after the PyTorch module that computes them.

    The name of a convolution's weight tells its module. The nodes after it, up to the next
    convolution, belong to the same module. `stage1.rebnconvin` is the output of that module, after
    its ReLU.

    Args:
        model: changed in place.
    """
    graph = model.graph
    fixed_names = {value.name for value in (*graph.input, *graph.output)}
    new_names: dict[str, str] = {}
    for node, name in zip(graph.node, _module_names(model), strict=True):
        node.name = name
        if node.output[0] not in fixed_names:
            new_names[node.output[0]] = name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new_names.get(name, name) for name in names]
    del graph.value_info[:]


def _module_names(model: onnx.ModelProto) -> list[str]:
    """Choose a unique name for every node, in the graph's order."""
    names = []
    counts: dict[str, int] = {}
    module = "network"
    for node in model.graph.node:
        if node.op_type == "Conv":
            name = module = node.input[1].removesuffix(".weight")
        elif node.op_type == "Relu":
            name = module = module.rsplit(".", 1)[0]
        else:
            name = f"{node.op_type.lower()}_after_{module}"
            count = counts[name] = counts.get(name, 0) + 1
            if count > 1:
                name = f"{name}_{count}"
        names.append(name)
    return names


def finalize(model: onnx.ModelProto, opset: int) -> None:
    """Remove what differs between runs or machines, and set the oldest IR version that fits.

    Args:
        model: changed in place.
        opset: of the graph.
    """
    model.producer_name, model.producer_version = "u2export", ""
    model.graph.name = "u2net"
    model.ir_version = IR_VERSIONS[opset]
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.functions[:]
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove the nodes and initializers that no output needs."""
    graph = model.graph
    needed_tensors = {value.name for value in graph.output}
    needed_nodes = []
    for node in reversed(graph.node):
        if needed_tensors.intersection(node.output):
            needed_nodes.append(node)
            needed_tensors.update(node.input)
    needed_initializers = [item for item in graph.initializer if item.name in needed_tensors]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(needed_nodes))
    graph.initializer.extend(needed_initializers)
