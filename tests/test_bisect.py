"""An export that is off at one module: which module is it?"""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from conftest import DEMO, SMALL
from onnx import numpy_helper

from u2export import artifact as artifacts
from u2export import registry, weights
from u2export.artifact import Artifact
from u2export.drawn import draw
from u2export.errors import InputError
from u2export.parity.bisect import bisect, table
from u2export.parity.budgets import BUDGETS
from u2export.pipeline import preprocess
from u2export.spec import PictureSpec, Precision

FP32 = BUDGETS[Precision.FP32]
FACTOR = 1.5


@pytest.fixture(scope="module")
def reference() -> Artifact:
    found = weights.find(DEMO)
    return dataclasses.replace(found, facts=found.facts.model_copy(update={"size": SMALL}))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return preprocess(draw(1_000_004).picture, PictureSpec(size=SMALL))


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
        found = bisect(reference, _faulty(whole, module, FACTOR, tmp_path / "f.onnx"), x, FP32)
        assert found.culprit == module
        assert not found.unmatched


def test_a_whole_export_has_no_culprit(whole, reference, x, tmp_path):
    onnx.save(whole, tmp_path / "w.onnx")
    found = bisect(reference, _opened(tmp_path / "w.onnx"), x, FP32, whole=True)
    assert (found.culprit, found.unmatched) == ("", ())
    assert len(found.modules) == 119
    assert found.agrees < 1e-4


@pytest.mark.parametrize("module", ["stage1.rebnconvin", "stage3d.rebnconv2d", "outconv"])
def test_openvino_is_bisected_too(whole, reference, x, tmp_path, module):
    _faulty(whole, module, FACTOR, tmp_path / "f.onnx")
    model = ov.Core().read_model(tmp_path / "f.onnx")
    ov.save_model(model, tmp_path / "f.xml", compress_to_fp16=False)
    assert bisect(reference, _opened(tmp_path / "f.xml"), x, FP32).culprit == module


def test_a_fault_within_the_budget_has_no_culprit(whole, reference, x, tmp_path):
    budget = FP32.model_copy(update={"raw_max": None, "raw_mean": 1.0, "mask_iou": 0.0})
    candidate = _faulty(whole, "stage1.rebnconvin", 1.01, tmp_path / "f.onnx")
    found = bisect(reference, candidate, x, budget)
    assert found.culprit == ""
    assert max(module.relative_max for module in found.modules) > 1e-3


def test_the_table_names_the_culprit_and_what_feeds_it(whole, reference, x, tmp_path):
    candidate = _faulty(whole, "stage2d.rebnconv1d", FACTOR, tmp_path / "f.onnx")
    told = table(bisect(reference, candidate, x, FP32))
    assert "first over the budget: stage2d.rebnconv1d" in told
    assert "stage1.rebnconvin" in told


def test_the_command_names_the_module_with_status_6(command, tmp_path, small, whole):
    path = small / "u2netp-demo-fp32-64-bN.onnx"
    draw(1_000_004).picture.save(tmp_path / "p.png")
    done = command("bisect", path, "--picture", "p.png")
    assert done.returncode == 0, done.stderr
    assert "first over the budget: no module" in done.stdout
    broken = onnx.load(path)
    node = next(n for n in broken.graph.node if n.name.startswith("stage4.rebnconv2."))
    item = next(i for i in broken.graph.initializer if i.name == node.input[1])
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 2, item.name))
    onnx.save(broken, tmp_path / path.name)
    shutil.copy(f"{path}.json", tmp_path)
    manifest = artifacts.read(path).manifest
    files = {path.name: artifacts.sha256_of(tmp_path / path.name)}
    (tmp_path / f"{path.name}.json").write_text(manifest.model_copy(update={"files": files}).text())
    done = command("bisect", path.name, "--picture", "p.png")
    assert done.returncode == 6
    assert "first over the budget: stage4.rebnconv2" in done.stdout
    assert "error: the first module over the budget is stage4.rebnconv2" in done.stderr


def test_what_shows_no_modules_is_refused(small: Path, reference, x):
    engine = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.engine")
    with pytest.raises(InputError, match="onnx, openvino can be bisected, not of tensorrt"):
        bisect(reference, engine, x, FP32)
    with pytest.raises(InputError, match="is no weights file"):
        bisect(engine, registry.open_artifact(small / "u2netp-demo-fp32-64-bN.onnx"), x, FP32)
