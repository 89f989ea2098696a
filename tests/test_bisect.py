"""An export that is off at one module: which module is it?"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from attacks.judge import cheats
from conftest import DEMO, SMALL
from onnx import numpy_helper

from u2export.compare.budgets import BUDGETS
from u2export.core import registry
from u2export.core.artifact import Artifact
from u2export.core.enums import Precision
from u2export.core.models import PictureSpec
from u2export.errors import DependencyError, InputError, ParityError
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.network import weights
from u2export.parity.bisect import bisect_artifact, raise_if_culprit
from u2export.parity.bisect_report import format_bisection
from u2export.system import hardware

FP32 = BUDGETS[Precision.FP32]
FACTOR = 1.5


@pytest.fixture(scope="module")
def reference() -> Artifact:
    found = weights.find(DEMO)
    return dataclasses.replace(found, facts=found.facts.model_copy(update={"size": SMALL}))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return preprocess(draw_image(1_000_004).picture, PictureSpec(size=SMALL))


@pytest.fixture(scope="module")
def whole(small: Path) -> onnx.ModelProto:
    model = onnx.load(small / "u2netp-demo-fp32-64-bN.onnx")
    del model.metadata_props[:]
    return model


def _modules(model: onnx.ModelProto) -> list[str]:
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return sorted({name.removesuffix(".conv_s1") for name in names})


def _opened(path: Path) -> Artifact:
    found = registry.open_artifact(path, DEMO.name)
    return dataclasses.replace(found, facts=found.facts.model_copy(update={"size": SMALL}))


def _faulty(whole: onnx.ModelProto, module: str, factor: float, path: Path) -> Artifact:
    """A copy of which one module's weights are a factor too large."""
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    wanted = {module, f"{module}.conv_s1"}
    node = next(n for n in model.graph.node if n.op_type == "Conv" and n.name in wanted)
    item = next(i for i in model.graph.initializer if i.name == node.input[1])
    values = numpy_helper.to_array(item) * np.float32(factor)
    item.CopyFrom(numpy_helper.from_array(values, item.name))
    onnx.save(model, path)
    return _opened(path)


def test_a_fault_in_any_of_twenty_modules_is_laid_to_it(whole, reference, x, tmp_path):
    names = _modules(whole)
    assert len(names) == 119
    for module in random.Random(0).sample(names, 20):
        found = bisect_artifact(
            reference, _faulty(whole, module, FACTOR, tmp_path / "f.onnx"), x, FP32
        )
        assert found.culprit == module
        assert not found.unmatched


def test_a_whole_export_has_no_culprit(whole, reference, x, tmp_path):
    onnx.save(whole, tmp_path / "w.onnx")
    found = bisect_artifact(reference, _opened(tmp_path / "w.onnx"), x, FP32, all_modules=True)
    assert (found.culprit, found.unmatched, found.over) == ("", (), False)
    assert len(found.modules) == 119
    assert found.agrees < 1e-4


@pytest.mark.parametrize("module", ["stage1.rebnconvin", "stage3d.rebnconv2d", "outconv"])
def test_openvino_is_bisected_too(whole, reference, x, tmp_path, module):
    _faulty(whole, module, FACTOR, tmp_path / "f.onnx")
    model = ov.Core().read_model(tmp_path / "f.onnx")
    ov.save_model(model, tmp_path / "f.xml", compress_to_fp16=False)
    assert bisect_artifact(reference, _opened(tmp_path / "f.xml"), x, FP32).culprit == module


def test_a_fault_within_the_budget_has_no_culprit_and_is_measured(whole, reference, x, tmp_path):
    candidate = _faulty(whole, "stage1.rebnconvin", 1.001, tmp_path / "f.onnx")
    found = bisect_artifact(reference, candidate, x, BUDGETS[Precision.FP16], all_modules=True)
    assert found.culprit == ""
    # the weights are a thousandth too large, so is what they give before the bias
    errors = {module.name: module.relative_max for module in found.modules}
    assert 2e-4 < errors["stage1.rebnconvin"] < 2e-3
    assert all(m.difference for m in found.modules if m.relative_max > 1e-3)
    assert bisect_artifact(reference, candidate, x, FP32).culprit == "stage1.rebnconvin"


def _renamed(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give all nodes and tensors of a module another name."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old or name.startswith(f"{old}."):
                    names[place] = new + name.removeprefix(old)
        if node.name == old or node.name.startswith(f"{old}."):
            node.name = new + node.name.removeprefix(old)
    for item in model.graph.initializer:
        if item.name.startswith(f"{old}."):
            item.name = new + item.name.removeprefix(old)


def test_a_module_without_a_name_is_told_and_a_wrong_name_is_seen(whole, reference, x, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    _renamed(model, "stage3.rebnconv4", "nameless")
    # these two have the same shape, and nothing else in common
    _renamed(model, "stage1.rebnconv2", "kept")
    _renamed(model, "stage1.rebnconv2d", "stage1.rebnconv2")
    _renamed(model, "kept", "stage1.rebnconv2d")
    onnx.save(model, tmp_path / "n.onnx")
    found = bisect_artifact(reference, _opened(tmp_path / "n.onnx"), x, FP32)
    why = dict(found.unmatched)
    assert set(why) == {"stage1.rebnconv2", "stage1.rebnconv2d", "stage3.rebnconv4"}
    assert why["stage3.rebnconv4"] == "the file has no node or tensor of this name"
    assert why["stage1.rebnconv2"].startswith("its tensor is something else")
    assert found.culprit == ""


def test_a_fault_that_leaves_nothing_alike_is_still_laid_to_its_module(
    whole, reference, x, tmp_path
):
    """All weights change their sign: the tensor is no more like the reference's."""
    candidate = _faulty(whole, "stage2.rebnconvin", -1.0, tmp_path / "f.onnx")
    found = bisect_artifact(reference, candidate, x, FP32)
    assert (found.culprit, found.unmatched) == ("stage2.rebnconvin", ())


def test_nan_is_laid_to_the_module_it_starts_at(whole, reference, x, tmp_path):
    candidate = _faulty(whole, "stage4.rebnconv3", float("nan"), tmp_path / "f.onnx")
    found = bisect_artifact(reference, candidate, x, FP32)
    assert found.culprit == "stage4.rebnconv3"
    errors = {module.name: module.relative_max for module in found.modules}
    assert errors["stage4.rebnconv3"] == float("inf")


def test_a_fault_outside_of_all_modules_is_still_one(whole, reference, x, tmp_path):
    """The last activation is left out: every module gives what it should."""
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    last = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    assert last.op_type == "Sigmoid"
    last.op_type = "Identity"
    onnx.save(model, tmp_path / "f.onnx")
    found = bisect_artifact(reference, _opened(tmp_path / "f.onnx"), x, FP32)
    assert (found.culprit, found.over) == ("", True)
    assert "what is wrong lies in none of these" in format_bisection(found)
    with pytest.raises(ParityError, match="no module of it alone explains it"):
        raise_if_culprit(found)


def test_another_file_can_be_the_reference(whole, reference, x, small, tmp_path):
    other = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.xml")
    candidate = _faulty(whole, "stage3.rebnconv2", 1.05, tmp_path / "f.onnx")
    found = bisect_artifact(reference, candidate, x, FP32, reference=other)
    assert (found.culprit, found.unmatched) == ("stage3.rebnconv2", ())
    # against itself, faults and all, nothing is wrong
    found = bisect_artifact(reference, candidate, x, FP32, reference=candidate)
    assert found.culprit == ""
    assert max(module.relative_max for module in found.modules) == 0


def test_the_table_names_the_culprit_and_what_feeds_it(whole, reference, x, tmp_path):
    candidate = _faulty(whole, "stage2d.rebnconv1d", FACTOR, tmp_path / "f.onnx")
    told = format_bisection(bisect_artifact(reference, candidate, x, FP32))
    assert "first over the budget: stage2d.rebnconv1d" in told
    assert "stage1.rebnconvin" in told


def test_the_command_names_the_module_with_status_6(command, tmp_path, small, whole):
    path = small / "u2netp-demo-fp32-64-bN.onnx"
    draw_image(1_000_004).picture.save(tmp_path / "p.png")
    done = command("bisect", "torch", path, "--picture", "p.png")
    assert done.returncode == 0, done.stderr
    assert "first over the budget: no module" in done.stdout
    broken = onnx.load(path)
    node = next(n for n in broken.graph.node if n.name.startswith("stage4.rebnconv2."))
    item = next(i for i in broken.graph.initializer if i.name == node.input[1])
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 2, item.name))
    cheats.save(broken, path, tmp_path / path.name)
    done = command("bisect", path, path.name, "--picture", "p.png", "--html", "growth.html")
    assert done.returncode == 6
    page = (tmp_path / "growth.html").read_text()
    assert "first over the budget: stage4.rebnconv2" in page
    assert page.count("stage2d.rebnconv1d") >= 2
    assert "first over the budget: stage4.rebnconv2" in done.stdout
    assert "error: the first module over the budget is stage4.rebnconv2" in done.stderr


def test_what_shows_no_modules_is_refused(small: Path, reference, x):
    artifact = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.onnx")
    with pytest.raises(InputError, match="can be bisected, not of torch"):
        bisect_artifact(reference, reference, x, FP32)
    with pytest.raises(InputError, match="is no weights file"):
        bisect_artifact(artifact, artifact, x, FP32)
    with pytest.raises(InputError, match="one picture at a time"):
        bisect_artifact(reference, artifact, np.concatenate([x, x]), FP32)


@pytest.mark.skipif(bool(hardware.query_cuda().gpus), reason="this machine has a GPU")
def test_an_engine_is_bisected_on_a_gpu_only(small: Path, reference, x):
    engine = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.engine")
    with pytest.raises(DependencyError, match="cannot run on cuda here"):
        bisect_artifact(reference, engine, x, FP32)
