"""Passes that make a traced graph small, free of its batch, reproducible and readable."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
import onnxsim
from onnx import numpy_helper

from u2export.errors import ExportError
from u2export.onnxfile import IR_VERSIONS

CHECKS = 2  # random inputs on which onnxsim compares before and after


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Run onnxsim with its comparison on.

    Raises:
        ExportError: the simplified graph computes something else.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        simplified, same = onnxsim.simplify(model, check_n=CHECKS)
    if not same:
        raise ExportError("onnxsim changed what the network computes")
    result: onnx.ModelProto = simplified
    return result


def resize_by_scales(model: onnx.ModelProto) -> None:
    """Let every Resize name constant scales instead of sizes, so that no batch is written down.

    All sizes are multiples of 32 pixels, so the scales are whole powers of two and exact.

    Raises:
        ExportError: a Resize whose scales cannot be told.
    """
    sizes = _static_shapes(model)
    constants: dict[tuple[float, ...], str] = {}
    for node in model.graph.node:
        if node.op_type != "Resize":
            continue
        before, after = sizes.get(node.input[0]), sizes.get(node.output[0])
        if (
            before is None
            or after is None
            or any(a % b for a, b in zip(after, before, strict=True))
        ):
            raise ExportError(f"the scales of {node.name} cannot be told: {before} to {after}")
        scales = tuple(float(a / b) for a, b in zip(after, before, strict=True))
        name = constants.setdefault(scales, f"scales_{int(scales[-2])}x{int(scales[-1])}")
        del node.input[1:]
        node.input.extend(["", name])
    for scales, name in constants.items():
        array = np.asarray(scales, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    drop_unused(model)


def set_batch(model: onnx.ModelProto, batch: int | None) -> None:
    """Give inputs and outputs this batch, or one that is free and called `batch`.

    Sound only after `resize_by_scales`: nothing else in U²-Net knows its batch.
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

    A convolution is told by its weight; what follows it up to the next one belongs to the same
    module. `stage1.rebnconvin` names what that module gives, after its ReLU.
    """
    renamed: dict[str, str] = {}
    taken = {value.name for value in (*model.graph.input, *model.graph.output)}
    counts: dict[str, int] = {}
    place = "network"
    for node in model.graph.node:
        if node.op_type == "Conv":
            place = node.input[1].removesuffix(".weight")
            name = place
        elif node.op_type == "Relu":
            name = place = place.rsplit(".", 1)[0]
        else:
            kind = f"{node.op_type.lower()}_after_{place}"
            counts[kind] = counts.get(kind, 0) + 1
            name = kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"
        node.name = name
        if node.output[0] not in taken:
            renamed[node.output[0]] = name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    del model.graph.value_info[:]


def finish(model: onnx.ModelProto, opset: int) -> None:
    """Drop what differs from run to run or machine to machine, and set the oldest fitting IR."""
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
    """Remove nodes and initializers that no output needs."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    initializers = [item for item in model.graph.initializer if item.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(initializers)


def _static_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = [d.dim_value for d in dims]
    return shapes
