from __future__ import annotations

import numpy as np
import pytest
import torch

from u2export.compare.budgets import BUDGETS, budget_excess
from u2export.compare.emulate import EmulatedNetwork
from u2export.compare.metrics import (
    MIN_CONTRAST,
    Difference,
    compare_maps,
    iou,
    summarize_differences,
)
from u2export.core.enums import Architecture, Precision
from u2export.core.models import MODELS
from u2export.errors import ExportError, ParityError
from u2export.export.confirm import check_before_publishing
from u2export.network.u2net import U2Net


def test_differences_are_those_worked_out_by_hand():
    reference = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    candidate = np.array([[0.0, 1.0], [0.25, 0.0]], np.float32)
    found = compare_maps(reference, candidate)
    assert (found.raw_max, found.raw_mean) == (0.75, 0.1875)
    assert (found.mask_mae, found.mask_iou) == (0.1875, 0.5)


def test_masks_are_compared_after_the_stretch():
    reference = np.array([[0.0, 0.5, 1.0]], np.float32)
    found = compare_maps(reference, reference * 0.5)
    assert found.raw_max == 0.5
    assert (found.mask_mae, found.mask_iou) == (0, 1)


def test_two_empty_masks_agree_and_an_empty_one_never_agrees_with_a_full_one():
    empty, full = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    assert iou(empty, empty) == 1
    assert iou(empty, full) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite_never_pass(bad: float, side: int):
    maps = [np.zeros((2, 2), np.float32) for _ in range(2)]
    maps[side][0, 0] = bad
    with pytest.raises(ParityError, match="NaN or infinite"):
        compare_maps(*maps)


def test_different_shapes_are_refused():
    with pytest.raises(ParityError, match="shapes differ"):
        compare_maps(np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32))


def _difference(**figures: float) -> Difference:
    return Difference(**{"raw_max": 0, "raw_mean": 0, "mask_mae": 0, "mask_iou": 1, **figures})


def test_comparing_nothing_is_no_pass():
    with pytest.raises(ParityError, match="nothing was compared"):
        summarize_differences([], [])


def test_each_figure_over_its_budget_is_named():
    good = summarize_differences([_difference()], [1.0])
    assert budget_excess(good, BUDGETS[Precision.FP32]) == ""
    for figures, name in [
        ({"raw_max": 4e-4}, "raw_max"),
        ({"raw_mean": 2e-5}, "raw_mean"),
        ({"mask_mae": 2e-4}, "mask_mae"),
        ({"mask_iou": 0.9}, "worst_iou"),
        ({"raw_max": float("nan")}, "raw_max"),
    ]:
        judged = summarize_differences([_difference(**figures)], [1.0])
        assert name in budget_excess(judged, BUDGETS[Precision.FP32])


def test_masks_without_a_subject_are_judged_by_raw_values_only():
    judged = summarize_differences([_difference(mask_iou=0.1, raw_mean=1e-6)], [MIN_CONTRAST / 2])
    assert (judged.subjects, judged.mask_iou) == (0, None)
    assert budget_excess(judged, BUDGETS[Precision.FP32]) == ""


@pytest.fixture
def network() -> U2Net:
    torch.manual_seed(3)
    return U2Net(Architecture.SMALL).eval()


def test_emulation_rounds_every_result_to_half(network: U2Net):
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    found = EmulatedNetwork(network, Precision.FP16)(x)
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))
    with torch.inference_mode():
        exact = network(torch.tensor(x)).numpy()
    difference = np.abs(found - exact)
    assert 0 < difference.max() < 0.05


def test_emulation_gives_what_half_arithmetic_gives_on_one_layer():
    net = U2Net(Architecture.SMALL).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.outconv.bias.fill_(1 / 3)
    found = EmulatedNetwork(net, Precision.FP16)(np.zeros((1, 3, 32, 32), np.float32))
    half = np.float16(np.float32(1) / 3)
    expected = np.float16(1 / (1 + np.exp(-np.float64(half))))
    np.testing.assert_array_equal(found, np.full((1, 1, 32, 32), np.float32(expected)))


def test_overflow_is_named_with_its_module(network: U2Net):
    with torch.no_grad():
        network.stage2d.rebnconv1d.conv_s1.bias.fill_(60000.0)
        network.stage2d.rebnconvin.conv_s1.bias.fill_(60000.0)
    with pytest.raises(ExportError, match=r"half precision overflows at stage2d.*65504"):
        EmulatedNetwork(network, Precision.FP16)(np.zeros((1, 3, 32, 32), np.float32))


def test_weights_beyond_half_are_named(network: U2Net):
    with torch.no_grad():
        network.side1.weight[0, 0, 0, 0] = 70000
    with pytest.raises(ExportError, match=r"side1\.weight: 70000"):
        EmulatedNetwork(network, Precision.FP16)(np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize(
    "damage",
    ["one layer off by 1 %", "channels swapped", "a side map for d0"],
)
def test_an_export_that_computes_something_else_is_refused(exported, tmp_path, damage: str):
    import onnx
    from onnx import numpy_helper

    from u2export.core import registry
    from u2export.network import weights

    parent = weights.find(MODELS["u2netp-demo"])
    good = registry.open_artifact(exported / "u2netp-demo-fp32.onnx")  # it was confirmed
    model = onnx.load(good.path)
    if damage == "a side map for d0":
        sigmoid = next(n for n in model.graph.node if n.op_type == "Sigmoid")
        sigmoid.input[0] = "side1"
    else:
        name = "stage1.rebnconvin.conv_s1.weight"
        if damage == "one layer off by 1 %":
            name = "stage3d.rebnconv1d.conv_s1.weight"
        item = next(i for i in model.graph.initializer if i.name == name)
        values = numpy_helper.to_array(item)
        changed = values * 1.01 if damage.startswith("one layer") else values[:, ::-1].copy()
        item.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), name))
    path = tmp_path / good.path.name
    onnx.save(model, path)
    bad = type(good)(path, "onnx", good.facts)
    with pytest.raises(ExportError, match="is not the reference's function as executed here"):
        check_before_publishing(bad, parent)
