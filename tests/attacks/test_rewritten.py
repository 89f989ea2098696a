"""What other tools make of our ONNX files runs, and gives the same mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import pytest
from attacks.table import picture
from onnx import version_converter
from PIL import Image

GREY_LEVELS = 2  # of 255: fused nodes add in another order


def _simplified(source: Path, target: Path) -> None:
    model, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(model, target)


def _optimized(level: str) -> Callable[[Path, Path], None]:
    def optimize(source: Path, target: Path) -> None:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(target)
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.log_severity_level = 3
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return optimize


def _converted(opset: int) -> Callable[[Path, Path], None]:
    def convert(source: Path, target: Path) -> None:
        onnx.save(version_converter.convert_version(onnx.load(source), opset), target)

    return convert


def _external(source: Path, target: Path) -> None:
    onnx.save(onnx.load(source), target, save_as_external_data=True, location="weights.bin")


TOOLS = {
    "onnxsim": _simplified,
    "onnxruntime's basic optimizations": _optimized("ORT_ENABLE_BASIC"),
    "onnxruntime's extended optimizations": _optimized("ORT_ENABLE_EXTENDED"),
    "onnxruntime's optimizations for this CPU": _optimized("ORT_ENABLE_ALL"),
    "onnx's converter, to a newer opset": _converted(20),
    "onnx's converter, to an older opset": _converted(16),
    "weights in a file of their own": _external,
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_another_tool_made_of_ours_gives_the_same_mask(
    tool: str, precision: str, exported: Path, command, tmp_path: Path
):
    source = exported / f"u2netp-demo-{precision}.onnx"
    TOOLS[tool](source, tmp_path / "rewritten.onnx")
    picture(tmp_path / "p.png")
    for path, out in ((source, "ours"), ("rewritten.onnx", "theirs")):
        done = command("run", path, "p.png", "--model", "u2netp-demo", "--out", out)
        assert (done.returncode, done.stdout) == (0, f"{out}/p.png\n"), done.stderr
    results = [Image.open(tmp_path / out / "p.png") for out in ("ours", "theirs")]
    ours, theirs = (np.asarray(result, int) for result in results)
    assert np.abs(ours - theirs).max() <= GREY_LEVELS
