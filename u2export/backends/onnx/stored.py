"""What an ONNX file says of itself and how it stores its weights, read without any runtime.

The format is protobuf. The numbers of its fields are in ONNX's `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from u2export.core.enums import Precision
from u2export.core.facts import FACTS_KEY
from u2export.core.stored import (
    Effort,
    StoredTensor,
    count_elements,
    fit_bfloat16,
    possible_precisions,
)
from u2export.errors import ArtifactError
from u2export.system.documents import open_regular

_Fields: TypeAlias = Iterator[tuple[int, "int | memoryview"]]
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_MAX_DEPTH = 20  # of graphs within graphs
# TensorProto.DataType
_PRECISIONS = {
    1: Precision.FP32,
    2: Precision.INT8,
    3: Precision.INT8,
    10: Precision.FP16,
    16: Precision.BF16,
}
_COMPUTING = frozenset(
    {"Conv", "ConvInteger", "ConvTranspose", "FusedConv", "Gemm", "MatMul", "MatMulInteger"}
    | {"QLinearConv", "QLinearMatMul"}
)
# Operations between stored weights and the layer that reads them.
_PASSING = frozenset(
    {"Add", "Cast", "DequantizeLinear", "Identity", "Mul", "QuantizeLinear", "Reshape", "Sub"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass
class _Graph:
    """The nodes and tensors of a file, of all its graphs together.

    Attributes:
        computing: the inputs of each layer that computes.
        producers: by the name of a tensor, the inputs of the operation that passes it on.
        tensors: stored tensors by name.
    """

    computing: list[list[str]] = field(default_factory=list)
    producers: dict[str, list[str]] = field(default_factory=dict)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)


def read_facts(path: Path) -> str | None:
    """Read the facts embedded in an ONNX file.

    Returns:
        Their text; None for a foreign file.

    Raises:
        ArtifactError: it is no ONNX file, or holds them twice.
    """
    found = []
    with _reading(path) as model:
        for number, entry in _fields(model):
            if number == 14:  # metadata_props
                texts = dict(_fields(_nested(entry)))
                if _text(texts.get(1)) == FACTS_KEY:
                    found.append(_text(texts.get(2)))
    if len(found) > 1:
        raise ArtifactError(f"{path} holds its facts {len(found)} times: export it again")
    return found[0] if found else None


def stored_precisions(path: Path) -> tuple[Precision, ...]:
    """Find the precisions that describe most weights in a file, the strictest first.

    Raises:
        ArtifactError: it is no ONNX file.
    """
    graph = _Graph()
    with _reading(path) as model:
        for number, entry in _fields(model):
            if number in (7, 25):  # graph, functions
                _read_graph(_nested(entry), graph, node_field=1 if number == 7 else 7)
        effort = Effort()
        weights = [_largest(inputs, graph, effort) for inputs in graph.computing]
    return possible_precisions(tensor for tensor in weights if tensor)


def _largest(inputs: list[str], graph: _Graph, effort: Effort) -> StoredTensor | None:
    """The largest stored tensor that a layer reads: its weights."""
    names, seen = list(inputs), set(inputs)
    for name in names:  # grows
        effort.spend(1 + len(graph.producers.get(name, ())))
        further = [one for one in graph.producers.get(name, ()) if one not in seen]
        seen.update(further)
        names += further
    stored = [graph.tensors[name] for name in names if name in graph.tensors]
    return max(stored, key=lambda tensor: tensor.elements, default=None)


@contextmanager
def _reading(path: Path) -> Iterator[memoryview]:
    """Give a file's bytes; while they are read, damage is an error of ours.

    Raises:
        ArtifactError: it cannot be read, or is no protobuf.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
        yield memoryview(content)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as ONNX: {error}") from error


def _read_graph(content: memoryview, graph: _Graph, node_field: int, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("its graphs are nested too deeply")
    for number, value in _fields(content):
        if number == node_field:
            _read_node(_nested(value), graph, depth)
        elif number == 5 and node_field == 1:  # initializer
            _read_tensor(_nested(value), graph)


def _read_node(content: memoryview, graph: _Graph, depth: int) -> None:
    inputs: list[str] = []
    outputs: list[str] = []
    kind = ""
    for number, value in _fields(content):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            kind = _text(value)
        elif number == 5:
            _read_attribute(_nested(value), graph, outputs, depth)
    if kind in _COMPUTING:
        graph.computing.append(inputs)
    elif kind in _PASSING:
        graph.producers.update(dict.fromkeys(outputs, inputs))


def _read_attribute(content: memoryview, graph: _Graph, outputs: list[str], depth: int) -> None:
    for number, value in _fields(content):
        if number == 5 and outputs:  # the tensor of a Constant
            _read_tensor(_nested(value), graph, outputs[0])
        elif number in (6, 11):  # graphs
            _read_graph(_nested(value), graph, 1, depth + 1)


def _read_tensor(content: memoryview, graph: _Graph, name: str = "") -> None:
    dims: list[int] = []
    kind, raw, floats = 0, memoryview(b""), []
    for number, value in _fields(content):
        if number == 1:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 4:
            floats.append(_nested(value))
        elif number == 8:
            name = name or _text(value)
        elif number == 9:
            raw = _nested(value)
    if kind not in _PRECISIONS:
        return
    precision, values = _PRECISIONS[kind], b"".join([raw, *floats])
    exact = precision is Precision.FP32 and len(values) % 4 == 0 and len(values) > 0
    in_bfloat16 = exact and fit_bfloat16(np.frombuffer(values, "<f4"))
    graph.tensors[name] = StoredTensor(precision, count_elements(dims), in_bfloat16)


def _fields(content: memoryview) -> _Fields:
    """Give number and value of each field of a protobuf message.

    Raises:
        ValueError: it is no such message.
    """
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield tag >> 3, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
        if kind == _BYTES:
            length, at = _varint(content, at)
        if not 0 <= length <= len(content) - at:
            raise ValueError("it is cut or damaged")
        yield tag >> 3, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """Read an integer of variable length; give it and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return value, at
    raise ValueError("it is cut or damaged")


def _varints(content: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(content):
        value, at = _varint(content, at)
        values.append(value)
    return values


def _nested(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is damaged")  # noqa: TRY004  # the file's fault, not the caller's
    return value


def _text(value: int | memoryview | None) -> str:
    return "" if value is None else str(_nested(value), "utf-8", "replace")
