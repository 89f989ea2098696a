"""What is known of the ONNX file format without the onnx package."""

from __future__ import annotations

# The IR version that came with each opset: a reader of that opset's year accepts the file.
IR_VERSIONS = {16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
_FLOAT = 1


def tiny_model(opset: int, ir: int) -> bytes:
    """A one-node ONNX file, y = relu(x) of one float, to see whether a runtime takes its versions.

    Made by hand, so that a machine that only runs artifacts can be examined too.

    Args:
        opset: operator set, up to 127.
        ir: version of the file format, up to 127.

    Source:
        onnx.proto: field numbers of ModelProto, GraphProto, NodeProto and ValueInfoProto.
    """
    node = _text(1, "x") + _text(2, "y") + _text(4, "Relu")
    graph = _part(1, node) + _text(2, "tiny") + _part(11, _value("x")) + _part(12, _value("y"))
    return _number(1, ir) + _part(7, graph) + _part(8, _number(2, opset))


def _value(name: str) -> bytes:
    shape = _part(1, _number(1, 1))
    return _text(1, name) + _part(2, _part(1, _number(1, _FLOAT) + _part(2, shape)))


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _part(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2, len(content)]) + content


def _text(field: int, content: str) -> bytes:
    return _part(field, content.encode())
