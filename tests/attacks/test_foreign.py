"""Model files of other makers that give no real numbers, or declare what no memory holds."""

from __future__ import annotations

from pathlib import Path

import onnx
import openvino as ov
import pytest
from attacks.table import picture
from onnx import TensorProto, helper

KINDS = ["STRING", "BOOL", "INT64", "UINT8", "COMPLEX64", "BFLOAT16"]
REAL = ["FLOAT16", "DOUBLE"]


def _gives(kind: str, path: Path) -> Path:
    """Save an ONNX file that takes pictures and gives one map of this kind."""
    number = getattr(TensorProto, kind)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=1),
            helper.make_node("Cast", ["m"], ["y"], to=number),
        ],
        "gives",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 320, 320])],
        [helper.make_tensor_value_info("y", number, [1, 1, 320, 320])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def _as_xml(path: Path) -> Path:
    """Convert an ONNX file, with its types as they are."""
    target = path.with_suffix(".xml")
    ov.save_model(ov.Core().read_model(path), target, compress_to_fp16=False)
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_file_that_gives_no_real_numbers_is_refused(kind: str, command, tmp_path: Path):
    picture(tmp_path / "p.png")
    _gives(kind, tmp_path / "gives.onnx")
    done = command("run", "gives.onnx", "p.png", "--model", "u2netp")
    assert done.returncode == 4, done.stderr
    assert len(done.stderr.splitlines()) == 1
    # onnxruntime itself knows no complex numbers
    refused = f"gives.onnx gives tensor({kind.lower()}); it must give real numbers"
    assert ("refuses gives.onnx" if kind == "COMPLEX64" else refused) in done.stderr


# OpenVINO's converter takes no complex numbers, and its CPU plugin computes bfloat16.
@pytest.mark.parametrize(
    ("kind", "name"),
    [("STRING", "string"), ("BOOL", "boolean"), ("INT64", "i64"), ("UINT8", "u8")],
)
def test_an_xml_that_gives_no_real_numbers_is_refused(kind, name, command, tmp_path: Path):
    picture(tmp_path / "p.png")
    _as_xml(_gives(kind, tmp_path / "gives.onnx"))
    done = command("run", "gives.xml", "p.png", "--model", "u2netp")
    assert done.returncode == 4, done.stderr
    assert done.stderr == f"u2export: error: gives.xml gives {name}; it must give real numbers\n"


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("make", [lambda path: path, _as_xml], ids=["onnx", "xml"])
def test_half_and_double_precision_are_real_numbers(kind, make, command, tmp_path: Path):
    picture(tmp_path / "p.png")
    path = make(_gives(kind, tmp_path / "gives.onnx"))
    done = command("run", path.name, "p.png", "--model", "u2netp", "--out", "o")
    assert (done.returncode, done.stdout) == (0, "o/p.png\n"), done.stderr


def _declares(path: Path, shape: tuple[object, ...], outputs: int = 1, channels: int = 1) -> Path:
    """Save an ONNX file that takes this shape, and gives maps of so many channels."""
    nodes = [helper.make_node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=1)]
    nodes += [
        helper.make_node("Concat", ["m"] * channels, [f"y{index}"], axis=1)
        for index in range(outputs)
    ]
    given = (shape[0], channels, *shape[2:])
    graph = helper.make_graph(
        nodes,
        "declares",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, given)
            for index in range(outputs)
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


DECLARED = {
    "a batch of two billion": (((1 << 31) - 1, 3, 320, 320), 1, 1, " pictures per call: 1 to 1024"),
    "a batch of 1025": ((1025, 3, 320, 320), 1, 1, "takes 1025 pictures per call"),
    "sides of a million": ((1, 3, 1 << 20, 1 << 20), 1, 1, "not pictures of 3x320x320"),
    "65 outputs": ((1, 3, 320, 320), 65, 1, "gives 65 outputs: 1 to 64 can be"),
    "two channels": ((1, 3, 320, 320), 1, 2, "gives 1x2x320x320, not a map of 1x320x320"),
    "three sides": ((3, 320, 320), 1, 1, "takes 3x320x320, not pictures of 3x320x320"),
}


@pytest.mark.parametrize("make", [lambda path: path, _as_xml], ids=["onnx", "xml"])
@pytest.mark.parametrize("name", DECLARED)
def test_what_a_file_declares_is_bounded_before_it_takes_memory(
    name: str, make, command, tmp_path: Path
):
    shape, outputs, channels, sentence = DECLARED[name]
    picture(tmp_path / "p.png")
    path = make(_declares(tmp_path / "a.onnx", shape, outputs, channels))
    done = command("run", path.name, "p.png", "--model", "u2netp", "--out", "o")
    assert done.returncode == 4, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
