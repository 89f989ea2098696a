"""What an ONNX file says of itself and how it stores its weights, read without any runtime.

The format is protobuf. The numbers of its fields are in ONNX's `onnx.proto`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

from u2export.core.enums import Precision
from u2export.core.facts import FACTS_KEY
from u2export.core.stored import (
    MAX_DIMENSIONS,
    Operation,
    StoredGraph,
    count_elements,
    find_weights,
    possible_precisions,
    stored_tensor,
)
from u2export.errors import ArtifactError
from u2export.system.documents import open_regular

_Fields: TypeAlias = Iterator[tuple[int, "int | memoryview"]]
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_FUNCTION = "function "  # before its name, so that no tensor is called so
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
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)
# Operations between stored weights and the layer that reads them.
_PASSING = frozenset(
    {"Add", "Cast", "DequantizeLinear", "Identity", "Mul", "QuantizeLinear", "Reshape", "Sub"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)


def read_facts(path: Path) -> str | None:
    """Read the facts embedded in an ONNX file.

    Returns:
        Their text; None for a foreign file.

    Raises:
        ArtifactError: it is no ONNX file, or holds them twice.
    """
    found = []
    with _reading(path) as model:
        for number, entry in _fields(memoryview(model)):
            if number == 14:  # metadata_props
                texts = dict(_fields(_nested(entry)))
                if _text(texts.get(1)) == FACTS_KEY:
                    found.append(_text(texts.get(2)))
    if len(found) > 1:
        raise ArtifactError(f"{path} holds its facts {len(found)} times: export it again")
    return found[0] if found else None


def external_files(path: Path) -> list[str]:
    """Where tensors lie that are not in an ONNX file, as it says: paths from its folder.

    Raises:
        ArtifactError: it is no ONNX file.
    """
    with _reading(path) as model:
        if b"location" not in model:  # what the entry is called that says so
            return []
        return sorted(_read_model(memoryview(model)).elsewhere)


def stored_precisions(path: Path) -> tuple[Precision, ...]:
    """Find the precisions that describe most weights in a file: see `possible_precisions`.

    Raises:
        ArtifactError: it is no ONNX file, or one that takes too long to read.
    """
    with _reading(path) as model:
        return possible_precisions(find_weights(_read_model(memoryview(model))))


@contextmanager
def _reading(path: Path) -> Iterator[bytes]:
    """Give a file's bytes; while they are read, damage is an error of ours.

    Raises:
        ArtifactError: it cannot be read, or is no protobuf.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
        yield content
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as ONNX: {error}") from error


def _read_model(model: memoryview) -> StoredGraph:
    graph = StoredGraph()
    for number, entry in _fields(model):
        if number == 7:  # graph
            _read_graph(_nested(entry), graph)
            graph.outputs = graph.outputs[:1]  # the first one makes masks
        elif number == 25:  # functions
            _read_function(_nested(entry), graph)
    return graph


def _read_graph(content: memoryview, graph: StoredGraph, depth: int = 0) -> list[str]:
    """Read a graph; give the names of all that its operations give."""
    if depth > _MAX_DEPTH:
        raise ValueError("its graphs are nested too deeply")
    given: list[str] = []
    for number, value in _fields(content):
        if number == 1:  # node
            given += _read_node(_nested(value), graph, depth)
        elif number == 5:  # initializer
            _read_tensor(_nested(value), graph)
        elif number == 12 and depth == 0:  # output
            graph.outputs += [_text(name) for part, name in _fields(_nested(value)) if part == 1]
    return given


def _read_function(content: memoryview, graph: StoredGraph) -> None:
    """Read a function's operations; whoever calls it reads what they give."""
    given: list[str] = []
    name = ""
    for number, value in _fields(content):
        if number == 1:
            name = _text(value)
        elif number == 7:
            given += _read_node(_nested(value), graph, 1)
    graph.operations[_FUNCTION + name] = Operation(given)


def _read_node(content: memoryview, graph: StoredGraph, depth: int) -> list[str]:
    """Read an operation; give the names of what it gives."""
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
            inputs += _read_attribute(_nested(value), graph, outputs, depth)
    if kind in _RANDOM:
        raise ValueError(f"it draws random numbers by {kind}, so no check holds for the next call")
    if kind not in _COMPUTING | _PASSING:
        inputs.append(_FUNCTION + kind)  # it may be one
    operation = Operation(inputs, computes=kind in _COMPUTING, passes=kind in _PASSING)
    if kind != "Constant":
        graph.operations.update(dict.fromkeys(outputs, operation))
    return outputs


def _read_attribute(
    content: memoryview, graph: StoredGraph, outputs: list[str], depth: int
) -> list[str]:
    """Read an attribute; give the names of what the operations of its graphs give."""
    given: list[str] = []
    for number, value in _fields(content):
        if number == 5 and outputs:  # the tensor of a Constant
            _read_tensor(_nested(value), graph, outputs[0])
        elif number in (6, 11):  # graphs
            given += _read_graph(_nested(value), graph, depth + 1)
    return given


def _read_tensor(content: memoryview, graph: StoredGraph, name: str = "") -> None:
    dims: list[int] = []
    kind, raw, floats = 0, memoryview(b""), []
    for number, value in _fields(content):
        if number == 1:
            dims += [value] if isinstance(value, int) else _varints(value)
            count_elements(dims)  # before there are more
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 4:
            floats.append(_nested(value))
        elif number == 8:
            name = name or _text(value)
        elif number == 9:
            raw = _nested(value)
        elif number == 13:  # external_data
            entry = dict(_fields(_nested(value)))
            if _text(entry.get(1)) == "location":
                graph.elsewhere.add(_text(entry.get(2)))
    if kind in _PRECISIONS:
        values = b"".join(floats) or raw
        graph.tensors[name] = functools.cache(
            partial(stored_tensor, _PRECISIONS[kind], tuple(dims), values)
        )


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
    values: list[int] = []
    at = 0
    while at < len(content) and len(values) <= MAX_DIMENSIONS:
        value, at = _varint(content, at)
        values.append(value)
    return values


def _nested(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is damaged")  # noqa: TRY004  # the file's fault, not the caller's
    return value


def _text(value: int | memoryview | None) -> str:
    return "" if value is None else str(_nested(value), "utf-8", "replace")
