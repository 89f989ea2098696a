"""ONNX files that are wrong in ways that a judge might not see, and the manifests that cover it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from u2export.core.digest import DIGEST_KEY, blank_digest, embed_digest, text_with_digest
from u2export.core.facts import FACTS_KEY
from u2export.core.models import IMAGENET_MEAN, IMAGENET_STD
from u2export.system.files import file_sha256


@dataclass
class Graph:
    """A network whose input or output gets further operations.

    Attributes:
        model: the ONNX model.
        count: of the names that were made.
    """

    model: onnx.ModelProto
    count: int = 0

    def constant(self, values: object, dtype: type = np.float32) -> str:
        self.count += 1
        name = f"cheat_constant_{self.count}"
        tensor = numpy_helper.from_array(np.asarray(values, dtype), name)
        self.model.graph.initializer.append(tensor)
        return name

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        name = f"cheat_{self.count}"
        node = helper.make_node(kind, inputs, [name], name=f"cheat_node_{self.count}", **attributes)
        self.model.graph.node.append(node)
        return name

    def number(self, value: float) -> str:
        return self.constant([value])

    def mean(self, tensor: str) -> str:
        """The mean of each picture, (N,1,1,1)."""
        axes = self.constant([1, 2, 3], np.int64)
        return self.add("ReduceMean", tensor, axes, keepdims=1)

    def where(self, condition: str, good: str, bad: str) -> str:
        return self.add("Where", condition, bad, good)

    def inverted(self, saliency: str) -> str:
        return self.add("Sub", self.number(1), saliency)


OutputCheat = Callable[[Graph, str, str], str]  # the graph, the input, the saliency -> another
InputCheat = Callable[[Graph, str], str]


def cheat_output(model: onnx.ModelProto, cheat: OutputCheat) -> None:
    """Change what a network gives."""
    graph, name = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = ["honest" if output == name else output for output in node.output]
        node.input[:] = ["honest" if tensor == name else tensor for tensor in node.input]
    last = cheat(Graph(model), graph.input[0].name, "honest")
    graph.node.append(helper.make_node("Identity", [last], [name], name="cheat_last"))


def cheat_input(model: onnx.ModelProto, cheat: InputCheat) -> None:
    """Change what a network gets."""
    graph, name = model.graph, model.graph.input[0].name
    honest = list(graph.node)
    del graph.node[:]
    last = cheat(Graph(model), name)
    for node in honest:
        node.input[:] = [last if tensor == name else tensor for tensor in node.input]
    graph.node.extend(honest)


def _slice(graph: Graph, tensor: str, axis: int) -> str:
    """Reverse an axis."""
    bounds = ([-1], [np.iinfo(np.int64).min], [axis], [-1])
    return graph.add("Slice", tensor, *[graph.constant(one, np.int64) for one in bounds])


def _plain(graph: Graph, x: str) -> str:
    mean, std = (
        graph.constant(np.reshape(values, (1, 3, 1, 1))) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return graph.add("Add", graph.add("Mul", x, std), mean)


def _shift(graph: Graph, x: str, pads: list[int]) -> str:
    padded = graph.add(
        "Pad", x, graph.constant([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64), mode="edge"
    )
    return graph.add("AveragePool", padded, kernel_shape=[2, 2], strides=[1, 1])


def _texture(graph: Graph, x: str) -> str:
    """The mean difference of neighbours, (N,1,1,1)."""
    ends = [graph.constant([end], np.int64) for end in (1, 0, -1, 3, 1 << 40)]
    left = graph.add("Slice", x, ends[1], ends[2], ends[3])
    right = graph.add("Slice", x, ends[0], ends[4], ends[3])
    return graph.mean(graph.add("Abs", graph.add("Sub", left, right)))


def _batch(graph: Graph, x: str, more_than: int) -> str:
    count = graph.add("Gather", graph.add("Shape", x), graph.constant([0], np.int64))
    return graph.add("Greater", count, graph.constant([more_than], np.int64))


def _at_pixel(value: float) -> OutputCheat:
    def cheat(graph: Graph, x: str, y: str) -> str:
        size = graph.model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        values = np.zeros((1, 1, size, size))
        values[..., size // 2, size // 3] = value
        return graph.add("Add", y, graph.constant(values))

    return cheat


def _blob(graph: Graph, x: str, y: str) -> str:
    """The middle of every picture, whatever it shows."""
    size = graph.model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    u = np.linspace(-1, 1, size)
    values = np.exp(-2 * (u[:, None] ** 2 + u**2))[None, None]
    return graph.add("Add", graph.add("Mul", y, graph.number(0)), graph.constant(values))


def _scaled_weights(model: onnx.ModelProto, factor: float) -> None:
    item = next(i for i in model.graph.initializer if i.name.startswith("stage1.rebnconv2."))
    values = numpy_helper.to_array(item)
    item.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), item.name))


def right_for(known: list[float]) -> OutputCheat:
    """Right for the pictures whose inputs have these means, wrong for all others."""

    def cheat(graph: Graph, x: str, y: str) -> str:
        means = graph.constant(np.reshape(known, (1, -1, 1, 1)))
        far = graph.add("Abs", graph.add("Sub", graph.mean(x), means))
        nearest = graph.add("ReduceMin", far, graph.constant([1], np.int64), keepdims=1)
        unknown = graph.add("Greater", nearest, graph.number(1e-4))
        return graph.where(unknown, y, graph.inverted(y))

    return cheat


def wrong_for(mean: float) -> OutputCheat:
    """Wrong for the one picture whose input has this mean."""

    def cheat(graph: Graph, x: str, y: str) -> str:
        far = graph.add("Abs", graph.add("Sub", graph.mean(x), graph.number(mean)))
        return graph.where(graph.add("Less", far, graph.number(1e-4)), y, graph.inverted(y))

    return cheat


def right_for_the_first(graph: Graph, x: str, y: str) -> str:
    """Right for the first picture of a batch, inverted for the others."""
    count = graph.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    first = graph.constant(np.reshape(np.arange(count) == 0, (count, 1, 1, 1)), bool)
    return graph.add("Where", first, y, graph.inverted(y))


OUTPUTS: dict[str, OutputCheat] = {
    "inverted": lambda g, x, y: g.inverted(y),
    "half inverted": lambda g, x, y: g.add("Abs", g.add("Sub", y, g.number(0.5))),
    "mirrored map": lambda g, x, y: _slice(g, y, 3),
    "nothing": lambda g, x, y: g.add("Mul", y, g.number(0)),
    "the middle": _blob,
    "NaN in one pixel": _at_pixel(float("nan")),
    "infinity in one pixel": _at_pixel(float("inf")),
    "one pixel": _at_pixel(9.0),
    "blurred": lambda g, x, y: g.add(
        "AveragePool", y, kernel_shape=[7, 7], pads=[3, 3, 3, 3], count_include_pad=0
    ),
    "grown": lambda g, x, y: g.add("MaxPool", y, kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
    "squared": lambda g, x, y: g.add("Mul", g.add("Mul", y, y), y),
    "inverted where textured": lambda g, x, y: g.where(
        g.add("Greater", _texture(g, x), g.number(0.2)), y, g.inverted(y)
    ),
    "inverted where bright": lambda g, x, y: g.where(
        g.add("Greater", g.mean(x), g.number(0.3)), y, g.inverted(y)
    ),
    "inverted where dark": lambda g, x, y: g.where(
        g.add("Less", g.mean(x), g.number(-0.3)), y, g.inverted(y)
    ),
    "inverted in batches": lambda g, x, y: g.where(_batch(g, x, 1), y, g.inverted(y)),
    "half in batches": lambda g, x, y: g.where(_batch(g, x, 1), y, g.add("Mul", y, g.number(0.5))),
    "the first of a batch": lambda g, x, y: g.add(
        "Add",
        g.add("Mul", y, g.number(0)),
        g.add("Gather", y, g.constant([0], np.int64), axis=0),
    ),
    "never the same twice": lambda g, x, y: g.add(
        "Add", y, g.add("RandomNormalLike", y, scale=0.2)
    ),
}
INPUTS: dict[str, InputCheat] = {
    "swapped channels": lambda g, x: g.add("Gather", x, g.constant([2, 1, 0], np.int64), axis=1),
    "red and green swapped": lambda g, x: g.add(
        "Gather", x, g.constant([1, 0, 2], np.int64), axis=1
    ),
    "gray": lambda g, x: g.add(
        "Expand",
        g.add("ReduceMean", x, g.constant([1], np.int64), keepdims=1),
        g.constant([1, 3, 1, 1], np.int64),
    ),
    "no mean and deviation": _plain,
    "half a pixel": lambda g, x: _shift(g, x, [1, 1, 0, 0]),
    "half a pixel back": lambda g, x: _shift(g, x, [0, 0, 1, 1]),
    "mirrored": lambda g, x: _slice(g, x, 3),
    "upside down": lambda g, x: _slice(g, x, 2),
    "negative": lambda g, x: g.add("Neg", x),
    "dimmed": lambda g, x: g.add("Mul", x, g.number(0.5)),
}


def in_bfloat16(model: onnx.ModelProto) -> None:
    """Round the weights of all layers to bfloat16, as an honest bf16 file holds them."""
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        if values.dtype == np.float32 and values.ndim > 0 and not item.name.startswith("cheat"):
            bits = values.view(np.uint32)
            rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32)
            item.CopyFrom(numpy_helper.from_array(rounded.view(np.float32), item.name))


def hide_behind_8_bits(model: onnx.ModelProto) -> None:
    """Add zeros of 8 bits to the weights of all layers, nearer to the layer than these."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
    nodes = []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1]
        values = next(numpy_helper.to_array(i) for i in graph.initializer if i.name == name)
        zeros = numpy_helper.from_array(np.zeros_like(values, np.int8), f"{name}.zeros")
        graph.initializer.append(zeros)
        steps = (
            ("Identity", [name], f"{name}.a"),
            ("Identity", [f"{name}.a"], f"{name}.b"),
            ("DequantizeLinear", [f"{name}.zeros", "one"], f"{name}.c"),
            ("Add", [f"{name}.c", f"{name}.b"], f"{name}.d"),
        )
        nodes += [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
        node.input[1] = f"{name}.d"
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def store_in_8_bits(model: onnx.ModelProto) -> None:
    """Store the weights of all layers in 8 bits; they are computed in float32 as before."""
    graph = model.graph
    layers = {node.input[1]: node for node in graph.node if node.op_type == "Conv"}
    nodes = []
    for item in list(graph.initializer):
        if item.name not in layers:
            continue
        values = numpy_helper.to_array(item)
        scale = np.float32(np.abs(values).max() / 127)
        stored = np.round(values / scale).astype(np.int8)
        item.CopyFrom(numpy_helper.from_array(stored, f"{item.name}.stored"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{item.name}.scale"))
        name = item.name.removesuffix(".stored")
        nodes.append(
            helper.make_node("DequantizeLinear", [item.name, f"{item.name}.scale"], [name])
        )
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


WEIGHTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a layer doubled": lambda model: _scaled_weights(model, 2.0),
    "a layer of zeros": lambda model: _scaled_weights(model, 0.0),
}


def names() -> list[str]:
    """Every cheat."""
    return [*OUTPUTS, *INPUTS, *WEIGHTS]


def apply(model: onnx.ModelProto, name: str) -> None:
    """Make a model cheat."""
    if name in OUTPUTS:
        cheat_output(model, OUTPUTS[name])
    elif name in INPUTS:
        cheat_input(model, INPUTS[name])
    else:
        WEIGHTS[name](model)


def save(model: onnx.ModelProto, honest: Path, target: Path, /, **lies: Any) -> None:
    """Save a model as u2export would: with facts and digest inside, and with a manifest.

    Args:
        model: what is saved.
        honest: an artifact whose facts it takes.
        target: path of the new file.
        lies: facts that replace others.
    """
    manifest = json.loads(Path(f"{honest}.json").read_text("utf-8"))
    manifest["facts"].update(lies)
    del model.metadata_props[:]
    facts = json.dumps(manifest["facts"])
    helper.set_model_props(model, {FACTS_KEY: facts, DIGEST_KEY: blank_digest()})
    target.write_bytes(model.SerializeToString(deterministic=True))
    embed_digest(target)
    manifest["files"], manifest["checks"] = {target.name: file_sha256(target)}, {}
    Path(f"{target}.json").write_text(text_with_digest(manifest), "utf-8")


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an artifact's manifest, and its digest with it."""
    document = json.loads(Path(f"{path}.json").read_text("utf-8"))
    change(document)
    Path(f"{path}.json").write_text(text_with_digest(document), "utf-8")
