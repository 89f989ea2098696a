from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from u2export.core import registry
from u2export.core.enums import Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.errors import ExportError, InputError
from u2export.export.build import build_artifact
from u2export.network import weights
from u2export.onnx_graph import cleanup, fp16

DEMO = MODELS["u2netp-demo"]


@pytest.fixture(scope="module")
def half(exported: Path) -> onnx.ModelProto:
    return onnx.load(exported / "u2netp-demo-fp16.onnx")


@pytest.fixture(scope="module")
def single(exported: Path) -> onnx.ModelProto:
    return onnx.load(exported / "u2netp-demo-fp32.onnx")


def test_the_graph_holds_the_networks_operations_and_nothing_else(single: onnx.ModelProto):
    counts = collections.Counter(node.op_type for node in single.graph.node)
    # facts about U²-Net: 119 convolutions, 112 ReLU, 33 pools, 38 upsamples, one output
    assert counts == {
        "Conv": 119, "Relu": 112, "MaxPool": 33, "Resize": 38, "Concat": 51, "Add": 11,
        "Sigmoid": 1,
    }  # fmt: skip


def test_half_precision_adds_two_casts_and_nothing_else(half, single):
    counts = collections.Counter(node.op_type for node in half.graph.node)
    expected = collections.Counter(node.op_type for node in single.graph.node)
    assert counts - expected == {"Cast": 2}
    assert expected - counts == {}
    kinds = {item.name: item.data_type for item in half.graph.initializer}
    floats = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
    assert floats == {name for name in kinds if name.startswith("scales")}


def test_ends_are_float32_and_named(half: onnx.ModelProto):
    for model in (half,):
        assert [i.name for i in model.graph.input] == ["input"]
        assert [o.name for o in model.graph.output] == ["saliency"]
        ends = (*model.graph.input, *model.graph.output)
        assert {e.type.tensor_type.elem_type for e in ends} == {TensorProto.FLOAT}


def test_ir_and_opset_are_ones_that_older_runtimes_read(single: onnx.ModelProto):
    assert single.ir_version <= 10
    assert {(o.domain, o.version) for o in single.opset_import} == {("", 18)}


def test_nodes_are_named_after_pytorch_modules(single: onnx.ModelProto):
    from u2export.core.enums import Architecture
    from u2export.network.u2net import U2Net

    modules = dict(U2Net(Architecture.SMALL).named_modules())
    convolutions = [n.name for n in single.graph.node if n.op_type == "Conv"]
    assert len(set(convolutions)) == 119
    assert all(isinstance(modules[name], torch.nn.Conv2d) for name in convolutions)
    relus = [n.output[0] for n in single.graph.node if n.op_type == "Relu"]
    assert "stage2d.rebnconv1d" in relus
    assert set(relus) <= set(modules)


def test_nothing_of_the_machine_is_in_the_file(exported: Path):
    content = (exported / "u2netp-demo-fp32.onnx").read_bytes()
    assert b"/u2net.py" not in content
    assert str(Path(__file__).resolve().parents[1]).encode() not in content


def _conv(weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "w"], ["y"]), helper.make_node("Relu", ["y"], ["out"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 4, 4])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("value", [65505.0, -1e6, np.inf, np.nan])
def test_a_weight_beyond_half_precision_is_refused_by_name(value: float):
    with pytest.raises(ExportError, match=r"w holds .* more than half precision can"):
        fp16.convert_to_half(_conv(np.full((1, 1, 1, 1), value)))


def test_the_largest_half_is_taken():
    model = _conv(np.full((1, 1, 1, 1), 65504.0))
    fp16.convert_to_half(model)
    onnx.checker.check_model(model, full_check=True)


def test_half_precision_of_a_half_precision_graph_is_refused():
    model = _conv(np.ones((1, 1, 1, 1)))
    fp16.convert_to_half(model)
    with pytest.raises(InputError, match="already in half precision"):
        fp16.convert_to_half(model)


def test_a_resize_whose_scale_is_not_whole_is_refused():
    sizes = numpy_helper.from_array(np.array([1, 1, 6, 6], np.int64), "sizes")
    node = helper.make_node("Resize", ["input", "", "", "sizes"], ["out"], mode="linear")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 6, 6])],
        [sizes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(ExportError, match="scales of"):
        cleanup.resize_by_scales(model)


def test_a_simplification_that_changes_the_result_is_refused(monkeypatch, single):
    monkeypatch.setattr("onnxsim.simplify", lambda model, check_n: (model, False))
    with pytest.raises(ExportError, match="onnxsim changed"):
        cleanup.simplify(single)


def test_a_free_batch_gives_each_picture_its_own_result(tmp_path: Path):
    source = weights.find(DEMO)
    spec = ExportSpec(DEMO, 64, Precision.FP16, batch=None, all_outputs=True)
    path = build_artifact("onnx", spec, source, tmp_path).path
    assert path.name == "u2netp-demo-fp16-64-bN-all.onnx"
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["saliency", *(f"d{i}" for i in range(1, 7))]
    x = np.random.default_rng(0).standard_normal((5, 3, 64, 64), np.float32)
    together = session.run(None, {"input": x})
    alone = [session.run(None, {"input": x[i : i + 1]}) for i in range(5)]
    for output, maps in enumerate(together):
        one_by_one = np.concatenate([maps_of_one[output] for maps_of_one in alone])
        np.testing.assert_allclose(maps, one_by_one, atol=2e-3)  # a unit in half's last place


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (21, 10)])
def test_another_opset_is_the_one_in_the_file(tmp_path: Path, opset: int, ir: int):
    source = weights.find(DEMO)
    made = build_artifact("onnx", ExportSpec(DEMO, 64, opset=opset), source, tmp_path)
    model = onnx.load(made.path)
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir)
    assert registry.open_artifact(made.path).checks["executed"]["raw_max"] <= 1e-4
