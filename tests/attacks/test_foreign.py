"""Model files of other makers that give no real numbers."""

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
    ov.save_model(ov.convert_model(path), target, compress_to_fp16=False)
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
