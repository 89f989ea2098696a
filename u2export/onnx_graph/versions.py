"""Versions of the ONNX format, and a tiny ONNX file of any version. Needs no onnx package."""

from __future__ import annotations

# The IR version released with each opset. Readers of that opset's year accept the file.
IR_VERSIONS = {16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
_FLOAT = 1  # TensorProto.DataType


def tiny_model(opset: int, ir_version: int) -> bytes:
    """Build an ONNX file with one node, y = relu(x) of one float.

    A runtime that loads it supports the two versions. The file is built by hand, because machines
    that only run artifacts have no onnx package.

    Args:
        opset: operator set, up to 127.
        ir_version: version of the file format, up to 127.

    Returns:
        The content of the file.

    Source:
        onnx.proto: field numbers of ModelProto, GraphProto, NodeProto and ValueInfoProto.
    """
    node = _text(1, "x") + _text(2, "y") + _text(4, "Relu")
    graph = (
        _message(1, node)
        + _text(2, "tiny")
        + _message(11, _float_value("x"))
        + _message(12, _float_value("y"))
    )
    opset_import = _message(8, _varint(2, opset))
    return _varint(1, ir_version) + _message(7, graph) + opset_import


def _float_value(name: str) -> bytes:
    """A ValueInfoProto of shape (1,)."""
    shape = _message(1, _varint(1, 1))
    tensor_type = _message(1, _varint(1, _FLOAT) + _message(2, shape))
    return _text(1, name) + _message(2, tensor_type)


def _varint(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _message(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2, len(content)]) + content


def _text(field: int, content: str) -> bytes:
    return _message(field, content.encode())
