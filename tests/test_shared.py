"""Real weights and photographs, on machines that have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import parity_mutations as mutations
import pytest
from PIL import Image

from u2export.compare.budgets import BUDGETS
from u2export.compare.metrics import compare_maps
from u2export.core import registry
from u2export.core.enums import Precision, Stage
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.export.build import build_artifact
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.inference.segmenter import load
from u2export.network import weights
from u2export.parity.bisect import bisect_artifact

pytestmark = pytest.mark.shared
MODEL = MODELS["u2netp"]


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real")
    source = weights.find(MODEL, str(shared / "weights/u2netp.safetensors"))
    for precision in (Precision.FP32, Precision.FP16):
        # its parent, the ONNX artifact, is made beside it
        build_artifact("openvino", ExportSpec(MODEL, 320, precision), source, out)
    return out


def test_masks_are_the_authors_own(real: Path, shared: Path):
    differences = []
    with load(real / "u2netp-fp32.onnx") as segment:
        for path in sorted((shared / "images/salient").iterdir()):
            published = Image.open(shared / f"images/author_masks/{path.stem}.png").convert("L")
            mask = np.asarray(segment.mask(open_image(path)), np.float64)
            differences.append(np.abs(mask - np.asarray(published)).mean() / 255)
    assert len(differences) == 8
    assert np.mean(differences) <= 0.0025


def test_checks_of_real_weights_are_well_within_their_budgets(real: Path):
    fp32 = registry.open_artifact(real / "u2netp-fp32.onnx").checks
    fp16 = registry.open_artifact(real / "u2netp-fp16.onnx").checks
    assert fp32["executed"]["raw_max"] <= 1e-4
    assert fp16["emulated_fp16"]["mask_mae"] <= 0.0008
    assert fp16["emulated_fp16"]["mask_iou"] >= 0.997


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_gives_pytorchs_maps_of_photographs(real: Path, shared: Path, precision: str):
    source = weights.find(MODEL, str(shared / "weights/u2netp.safetensors"))
    found = []
    with (
        registry.open_runner(registry.open_artifact(real / f"u2netp-{precision}.xml")) as ours,
        registry.open_runner(source) as reference,
    ):
        for path in sorted((shared / "images/salient").iterdir()):
            x = preprocess(open_image(path), MODEL.picture)
            found.append(compare_maps(reference(x)[0, 0], ours(x)[0, 0]))
    if precision == "fp32":
        assert max(one.raw_max for one in found) <= 1e-4
    assert np.mean([one.raw_mean for one in found]) <= 5e-4
    assert np.mean([one.mask_iou for one in found]) >= 0.998


def test_naive_int8_fails_and_is_laid_to_the_one_sensitive_convolution(
    shared: Path, tmp_path: Path
):
    """At half the size, where a bisection takes a quarter of the time."""
    spec = dataclasses.replace(MODEL.picture, size=160)
    source = weights.find(MODEL, str(shared / "weights/u2netp.safetensors"))
    artifact = build_artifact("onnx", ExportSpec(MODEL, spec.size), source, tmp_path)
    pictures = [path.read_bytes() for path in sorted((shared / "images/human").iterdir())]
    path = mutations.naive_int8(artifact, tmp_path, pictures)
    quantized = registry.open_artifact(path, MODEL.name).with_facts(size=spec.size)
    budget, horse = BUDGETS[Precision.INT8], (shared / "images/salient/horse.jpg").read_bytes()
    small = source.with_facts(size=spec.size)
    with registry.open_runner(small) as one, registry.open_runner(quantized) as other:
        reference = mutations.side_of(one, spec, "PyTorch")
        candidate = mutations.side_of(other, spec, "naive int8")
        [parting] = mutations.partings([horse], reference, candidate, budget)
    assert parting.stage is Stage.INFER
    x = preprocess(open_image(shared / "images/salient/horse.jpg"), spec)
    found = bisect_artifact(source, quantized, x, budget)
    # the convolution that reads values of up to 228 in a few of its channels
    assert found.culprit == "stage2d.rebnconv1d"
    assert "stage2d.rebnconv2d" in found.inputs
