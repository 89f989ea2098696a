"""Small model files whose weights would take hours to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from u2export.backends.onnx.stored import stored_precisions as of_onnx
from u2export.backends.openvino.stored import stored_precisions as of_openvino
from u2export.core.enums import Precision
from u2export.errors import ArtifactError

MANY = 2000
SEARCH, TENSOR = "takes more than 1000000 steps", "sides that no memory holds"


def _onnx_chain(length: int, folder: Path) -> Path:
    """As many layers as additions, each behind all of them."""
    adding = [helper.make_node("Add", [f"{i}"], [f"{i + 1}"]) for i in range(length)]
    layers = [helper.make_node("Conv", [f"{length}"], [f"c{i}"]) for i in range(length)]
    joined = helper.make_node("Concat", [f"c{i}" for i in range(length)], ["y"])
    weights = helper.make_tensor("0", TensorProto.FLOAT16, [1], [1.0])
    return _saved([*adding, *layers, joined], [weights], folder)


def _onnx_tensor(dimensions: int, folder: Path) -> Path:
    layer = helper.make_node("Conv", ["w"], ["y"])
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[2] * dimensions)
    return _saved([layer], [tensor], folder)


def _saved(nodes: list, tensors: list, folder: Path) -> Path:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph(nodes, "g", [], [output], tensors))
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    return folder / "a.onnx"


def _layer(name: object, kind: str, data: str = "") -> str:
    return f'<layer id="{name}" type="{kind}">{data}</layer>'


def _xml(layers: list[str], edges: list[tuple[object, object]], folder: Path) -> Path:
    """Write a file whose convolutions all go to its result."""
    edges = [*edges, *((b, "y") for _, b in edges if str(b).startswith("c"))]
    joined = "".join(f'<edge from-layer="{a}" to-layer="{b}"/>' for a, b in edges)
    layers = [*layers, _layer("y", "Result")]
    text = f"<net><layers>{''.join(layers)}</layers><edges>{joined}</edges></net>"
    (folder / "a.xml").write_text(text)
    (folder / "a.bin").write_bytes(bytes(4))
    return folder / "a.xml"


def _constant(shape: str) -> str:
    data = f'<data element_type="f16" offset="0" size="2" shape="{shape}"/>'
    return _layer(0, "Const", data)


def _openvino_chain(length: int, folder: Path) -> Path:
    adding = [_layer(i + 1, "Add") for i in range(length)]
    layers = [_layer(f"c{i}", "Convolution") for i in range(length)]
    edges: list[tuple[object, object]] = [(i, i + 1) for i in range(length)]
    edges += [(length, f"c{i}") for i in range(length)]
    return _xml([_constant("1"), *adding, *layers], edges, folder)


def _openvino_tensor(dimensions: int, folder: Path) -> Path:
    layers = [_constant(",".join(["2"] * dimensions)), _layer("c", "Convolution")]
    return _xml(layers, [(0, "c")], folder)


HOSTILE = [
    (of_onnx, _onnx_chain, SEARCH),
    (of_onnx, _onnx_tensor, TENSOR),
    (of_openvino, _openvino_chain, SEARCH),
    (of_openvino, _openvino_tensor, TENSOR),
]
Read = Callable[[Path], tuple[Precision, ...]]


@pytest.mark.parametrize(("read", "make", "sentence"), HOSTILE)
def test_a_file_that_would_take_hours_is_refused(
    read: Read, make: Callable[[int, Path], Path], sentence: str, tmp_path: Path
):
    assert read(make(10, tmp_path)) == (Precision.FP16,)
    with pytest.raises(ArtifactError, match=sentence):
        read(make(MANY, tmp_path))


def test_values_that_are_looked_at_again_and_again_count_each_time(tmp_path: Path):
    layers = [_constant("4194304").replace("f16", "f32").replace('"2"', '"16777216"')]
    layers += [_layer(f"c{i}", "Convolution") for i in range(MANY)]
    path = _xml(layers, [(0, f"c{i}") for i in range(MANY)], tmp_path)
    path.with_suffix(".bin").write_bytes(bytes(1 << 24))
    with pytest.raises(ArtifactError, match=SEARCH):
        of_openvino(path)
