"""A runtime in NumPy: it reads `.toy` files and computes U²-Net's seven operations.

A `.toy` file is a magic word, the header's length, a header in JSON, and raw values.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from u2export.plugin import (
    DIGEST_KEY,
    FACTS_KEY,
    UNKNOWN,
    Array,
    Artifact,
    ArtifactError,
    Backend,
    Device,
    Execution,
    ExportError,
    ExportSpec,
    Facts,
    Layer,
    Precision,
    Runner,
    RunSpec,
    Tensors,
    blank_digest,
    converted_facts,
    embed_digest,
)

MAGIC = b"TOY1"
TYPES = {"float32": Precision.FP32, "float16": Precision.FP16}
MOVES = {"Cast", "Concat", "MaxPool", "Resize"}
VERSION = "1.0"


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Write an ONNX artifact as a `.toy` file.

    Raises:
        ExportError: the graph holds an operation that this runtime lacks.
    """
    import onnx

    model = onnx.load(parent.path)
    facts = converted_facts(parent, spec, {"onnx": importlib.metadata.version("onnx")})
    values = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    nodes = [_node(node, onnx) for node in model.graph.node]
    missing = {node["op"] for node in nodes} - OPERATIONS.keys()
    if missing:
        raise ExportError(f"the toy runtime lacks {', '.join(sorted(missing))}")
    header = {
        "nodes": nodes,
        "values": {name: [str(value.dtype), value.shape] for name, value in values.items()},
        "input": model.graph.input[0].name,
        "outputs": [value.name for value in model.graph.output],
        FACTS_KEY: facts.model_dump_json(),
        DIGEST_KEY: blank_digest(),
    }
    text = json.dumps(header).encode()
    raw = b"".join(np.ascontiguousarray(value).tobytes() for value in values.values())
    out.write_bytes(MAGIC + struct.pack("<I", len(text)) + text + raw)
    embed_digest(out)
    return facts


def _node(node: Any, onnx: Any) -> dict[str, Any]:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kept = {
        name: list(value) for name, value in attributes.items() if name in ("dilations", "pads")
    }
    return {
        "op": node.op_type,
        "name": node.name,
        "inputs": list(node.input),
        "output": node.output[0],
        **kept,
    }


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """Read a file's header, and its raw values.

    Raises:
        ArtifactError: it is no `.toy` file, or was cut short.
    """
    content = path.read_bytes()
    try:
        (length,) = struct.unpack("<I", content[4:8])
        header = json.loads(content[8 : 8 + length])
    except (struct.error, ValueError) as error:
        raise ArtifactError(f"{path} is no .toy file, or was cut short") from error
    if content[:4] != MAGIC or not isinstance(header, dict) or "nodes" not in header:
        raise ArtifactError(f"{path} is no .toy file")
    return header, content[8 + length :]


def read_values(header: dict[str, Any], raw: bytes, path: Path) -> dict[str, np.ndarray]:
    """Give the values by name.

    Raises:
        ArtifactError: the file was cut short.
    """
    values, start = {}, 0
    for name, (kind, shape) in header["values"].items():
        count = math.prod(shape)
        try:
            values[name] = np.frombuffer(raw, kind, count, start).reshape(shape)
        except ValueError as error:
            raise ArtifactError(f"{path} was cut short") from error
        start += count * np.dtype(kind).itemsize
    return values


class ToyRunner(Runner):
    """A network that NumPy computes, picture by picture."""

    def __init__(self, artifact: Artifact, run_spec: RunSpec) -> None:
        """Load the file."""
        super().__init__(artifact.facts.size, artifact.facts.batch)
        self._header, raw = read_header(artifact.path)
        stored = read_values(self._header, raw, artifact.path)
        self._values = {
            name: value.astype(np.float32) if value.dtype == np.float16 else value
            for name, value in stored.items()
        }
        self._run_spec, self._stored = run_spec, artifact.stored_precision
        self._libraries = ThreadpoolController()
        self._last_use = {
            name: place
            for place, node in enumerate(self._header["nodes"])
            for name in node["inputs"]
        }

    def tensors(self, x: Array, *, keep_all: bool = True) -> dict[str, np.ndarray]:
        """Compute one picture (1,3,size,size); give its tensors by name.

        Without `keep_all` a tensor is let go after its last use, and the outputs are left.
        """
        tensors: dict[str, np.ndarray] = {**self._values, self._header["input"]: x}
        for place, node in enumerate(self._header["nodes"]):
            inputs = [tensors[name] for name in node["inputs"] if name]
            tensors[node["output"]] = OPERATIONS[node["op"]](node, *inputs)
            for name in () if keep_all else set(node["inputs"]) - self._values.keys():
                if self._last_use[name] == place and name not in self._header["outputs"]:
                    tensors.pop(name, None)
        return tensors

    def _infer(self, x: Array) -> Array:
        return self._infer_all(x)[0]

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        # NumPy's library of matrix products takes all processors, unless it is told
        with self._libraries.limit(limits=self._run_spec.threads):
            each = [self.tensors(picture[None], keep_all=False) for picture in x]
        names = self._header["outputs"]
        return tuple(np.concatenate([tensors[name] for tensors in each]) for name in names)

    def _executed(self) -> Execution:
        tensors = self.tensors(np.zeros((1, 3, self.size, self.size), np.float32))
        return Execution(
            runtime=f"toy {VERSION}",
            device=self._run_spec.device,
            stored=self._stored,
            layers=tuple(_layer(node, tensors) for node in self._header["nodes"]),
        )

    def _release(self) -> None:
        self._values = {}


def _layer(node: dict[str, Any], tensors: dict[str, np.ndarray]) -> Layer:
    output, macs = tensors[node["output"]], 0
    if node["op"] == "Conv":
        macs = tensors[node["inputs"][1]][0].size * output.size
    precision = "fp32" if output.dtype == np.float32 else UNKNOWN
    return Layer(
        name=node["name"],
        kind=node["op"],
        device=str(Device.CPU),
        precision=precision,
        moves=node["op"] in MOVES,
        macs=macs,
    )


def _convolve(node: dict[str, Any], x: Array, weight: Array, bias: Array) -> Array:
    """Sum one matrix product per tap, with the padding and the dilation of the node."""
    top, left, bottom, right = node.get("pads", [0, 0, 0, 0])
    gap = node.get("dilations", [1, 1])
    padded = np.pad(x[0], ((0, 0), (top, bottom), (left, right)))
    height = padded.shape[1] - gap[0] * (weight.shape[2] - 1)
    width = padded.shape[2] - gap[1] * (weight.shape[3] - 1)
    result = np.repeat(bias[:, None], height * width, axis=1)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            rows = slice(i * gap[0], i * gap[0] + height)
            part = padded[:, rows, j * gap[1] : j * gap[1] + width]
            result += weight[:, :, i, j] @ part.reshape(len(part), -1)
    return result.reshape(1, -1, height, width)


def _pool(node: dict[str, Any], x: Array) -> Array:
    """The largest of two by two; an odd side is filled up."""
    fill = ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2))
    even = np.pad(x, fill, constant_values=-np.inf)
    pairs = np.maximum(even[:, :, ::2], even[:, :, 1::2])
    return np.maximum(pairs[..., ::2], pairs[..., 1::2])


def _resize(node: dict[str, Any], x: Array, scales: Array) -> Array:
    """Bilinear, with half-pixel centres."""
    down = _weights(x.shape[2], round(x.shape[2] * float(scales[2])))
    across = _weights(x.shape[3], round(x.shape[3] * float(scales[3])))
    return down @ x @ across.T


def _weights(old: int, new: int) -> Array:
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    first = np.floor(centre).astype(int)
    weights = np.zeros((new, old), np.float32)
    weights[np.arange(new), first] += (1 - (centre - first)).astype(np.float32)
    weights[np.arange(new), np.minimum(first + 1, old - 1)] += (centre - first).astype(np.float32)
    return weights


OPERATIONS = {
    "Add": lambda node, a, b: a + b,
    "Cast": lambda node, x: x,
    "Concat": lambda node, *parts: np.concatenate(parts, axis=1),
    "Conv": _convolve,
    "MaxPool": _pool,
    "Relu": lambda node, x: np.maximum(x, 0),
    "Resize": _resize,
    "Sigmoid": lambda node, x: (0.5 * (1 + np.tanh(0.5 * x))).astype(np.float32),
}


def read_facts(path: Path) -> str | None:
    """Read the facts in a file's header; None in a foreign one."""
    header, _ = read_header(path)
    return header.get(FACTS_KEY)


def stored_precisions(path: Path) -> tuple[Precision, ...]:
    """The precision that most values are stored in."""
    header, _ = read_header(path)
    counts: dict[Precision, int] = {}
    for kind, shape in header["values"].values():
        precision = TYPES[kind]
        counts[precision] = counts.get(precision, 0) + math.prod(shape)
    return (max(counts, key=lambda precision: counts[precision]),)


def module_tensors(artifact: Artifact, x: Array, names: Sequence[str]) -> tuple[Array, Tensors]:
    """Compute one picture; give the saliency, and the tensors of these modules."""
    with ToyRunner(artifact, RunSpec(Device.CPU, 1)) as runner:
        tensors = runner.tensors(x)
        nodes = {node["name"]: node["output"] for node in runner._header["nodes"]}
        saliency = tensors[runner._header["outputs"][0]]
    found = {name: tensors.get(name, tensors.get(nodes.get(name, ""))) for name in names}
    return saliency, {name: tensor for name, tensor in found.items() if tensor is not None}


BACKEND = Backend(
    name="toy",
    suffixes=(".toy",),
    parent="onnx",
    run_packages=("numpy",),
    export_packages=("numpy", "onnx"),
    run_extra="toy",
    export_extra="export",
    precisions=(Precision.FP32, Precision.FP16),
    devices=(Device.CPU,),
    export=export,
    open_runner=ToyRunner,
    read_facts=read_facts,
    export_options=("batch", "size", "all_outputs"),
    stored_precisions=stored_precisions,
    module_tensors=module_tensors,
    plot_colour="#a05195",
)
