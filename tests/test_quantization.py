from __future__ import annotations

import collections
import copy
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from u2export.backends.tensorrt import build
from u2export.backends.tensorrt.build import export, prepare_onnx
from u2export.compare.budgets import BUDGETS, budget_for, requested_budget
from u2export.compare.metrics import compare_maps
from u2export.core import registry
from u2export.core.artifact import converted_facts
from u2export.core.enums import Device, Precision
from u2export.core.execution import Execution, Layer, check_execution, execution_mismatch
from u2export.core.facts import QUANTIZATION_KEY
from u2export.core.int8_record import MaskQuality, meets_request, read_int8_record
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec, Quantization, RunRequest, RunSpec
from u2export.diagnostics.inspect import inspect_artifact
from u2export.errors import ExportError, InputError, ParityError
from u2export.export.build import build_artifact
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.network import checkpoint, u2net, weights
from u2export.onnx_graph import qdq
from u2export.onnx_graph.qdq import QdqRecipe
from u2export.quantization import calibration, gptq, moments, search
from u2export.quantization.search_cache import SearchCache
from u2export.system import hardware

DEMO = MODELS["u2netp-demo"]
SIZE = 64  # pixels
SPEC = dataclasses.replace(DEMO.picture, size=SIZE)
STEM = "u2netp-demo-int8-64"


def _untracked(items, what):
    return iter(items)


def _run(model: onnx.ModelProto):
    """Onnxruntime doing exactly what the graph says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for seed in range(1_000_500, 1_000_510):
        draw_image(seed, (120, 90)).picture.save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def asked(pictures: Path) -> Quantization:
    return Quantization(tuple(sorted(pictures.iterdir())), min_iou=0.9, max_mae=0.03)


@pytest.fixture(scope="module")
def made(asked: Quantization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo weights in 8 bits, as every backend exports them."""
    out = tmp_path_factory.mktemp("int8")
    spec = ExportSpec(DEMO, SIZE, Precision.INT8, quantization=asked)
    for backend in ("onnx", "openvino", "tensorrt"):
        build_artifact(backend, spec, weights.find(DEMO), out)
    return out


@pytest.fixture(scope="module")
def whole(made: Path) -> onnx.ModelProto:
    return onnx.load(made / f"{STEM}.onnx")


@pytest.fixture(scope="module")
def inputs() -> list[np.ndarray]:
    return [preprocess(draw_image(seed).picture, SPEC) for seed in range(1_000_600, 1_000_604)]


# --- the graph


def test_all_that_convolutions_take_is_in_whole_numbers(whole: onnx.ModelProto, made: Path):
    found = read_int8_record(registry.open_artifact(made / f"{STEM}.onnx"))
    makers = {node.output[0]: node for node in whole.graph.node}
    kinds = {item.name: item.data_type for item in whole.graph.initializer}
    left = {"outconv", *found.in_float}
    convolutions = [node for node in whole.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 119
    for node in convolutions:
        if node.name.removesuffix(".conv_s1") in left:
            assert node.input[1] in kinds
            continue
        given, weight, bias = (makers[name] for name in node.input)
        assert {given.op_type, weight.op_type, bias.op_type} == {"DequantizeLinear"}
        assert makers[given.input[0]].op_type == "QuantizeLinear"
        assert kinds[given.input[2]] == TensorProto.UINT8
        assert (kinds[weight.input[0]], kinds[bias.input[0]]) == (
            TensorProto.INT8, TensorProto.INT32,
        )  # fmt: skip


def test_what_moves_values_keeps_their_scale(whole: onnx.ModelProto):
    makers = {node.output[0]: node for node in whole.graph.node}
    users = collections.defaultdict(list)
    for node in whole.graph.node:
        for name in node.input:
            users[name].append(node)
    counted = collections.Counter()
    for node in whole.graph.node:
        if node.op_type not in ("MaxPool", "Resize", "Concat"):
            continue
        after = users[node.output[0]]
        if [one.op_type for one in after] != ["QuantizeLinear"]:
            continue
        counted[node.op_type] += 1
        data = node.input[:1] if node.op_type == "Resize" else node.input
        scales = {makers[name].input[1] for name in data} | {after[0].input[1]}
        assert len(scales) == 1, node.name
    assert counted["MaxPool"] == 33  # all there are
    assert counted["Resize"] >= 30
    assert counted["Concat"] >= 40


def test_onnxruntime_computes_nearly_everything_in_whole_numbers(made: Path):
    executed = inspect_artifact(made / f"{STEM}.onnx")
    assert executed.complaint == ""
    assert executed.macs["int8 on cpu"] >= 0.95
    kinds = collections.Counter(layer.kind for layer in executed.executed.layers)
    assert kinds["QLinearConv"] >= 110 - len(
        read_int8_record(registry.open_artifact(made / f"{STEM}.onnx")).in_float
    )


def test_openvino_computes_nearly_everything_in_whole_numbers(made: Path):
    executed = inspect_artifact(made / f"{STEM}.xml")
    assert executed.complaint == ""
    assert executed.macs["int8 on cpu"] >= 0.95


def test_the_signed_form_has_nothing_unsigned_and_float_biases(whole: onnx.ModelProto):
    found = qdq.to_signed(whole)
    onnx.checker.check_model(found, full_check=True)
    kinds = {item.data_type for item in found.graph.initializer}
    assert not kinds & {TensorProto.UINT8, TensorProto.INT32}
    before = {item.name: numpy_helper.to_array(item) for item in whole.graph.initializer}
    after = {item.name: numpy_helper.to_array(item) for item in found.graph.initializer}
    # the network's input is about as far below zero as above; what a ReLU gives is never below
    low, high = -before["input_zero"].astype(float), 255 - before["input_zero"].astype(float)
    reach = before["input_step"] * max(-low, high)
    # to the eleven digits that half precision has
    assert after["input_step"] == pytest.approx(reach / 127, rel=2**-11)
    step = "stage1.rebnconvin_step"
    assert after[step] == pytest.approx(before[step] * 255 / 127, rel=2**-11)
    assert after[step] == np.float16(after[step])
    bias = "stage1.rebnconvin.bias"
    worth = before[f"{bias}_whole"] * before[f"{bias}_step"].astype(float)
    np.testing.assert_allclose(after[f"{bias}_back"], worth, rtol=1e-6)


def test_the_signed_form_is_the_same_network(whole: onnx.ModelProto, inputs):
    signed = qdq.to_signed(whole)
    for x in inputs:
        one, two = (_run(model)(x)[0][0, 0] for model in (whole, signed))
        assert compare_maps(one, two).mask_mae < 0.03


def test_a_graph_that_is_quantized_is_refused(whole: onnx.ModelProto):
    with pytest.raises(InputError, match="quantized already"):
        qdq.refuse_quantized(whole)


def _one_convolution(bias: float) -> tuple[onnx.ModelProto, QdqRecipe]:
    """Y = relu(conv(x)) of one channel and one weight, 0.5, then another that gives the output."""
    nodes, values = [], []
    for name, given, made_, w, b in (("a", "x", "p", 0.5, bias), ("b", "q", "y", 1.0, 0.0)):
        nodes.append(
            helper.make_node("Conv", [given, f"{name}.w", f"{name}.b"], [made_], name=name)
        )
        values.append(numpy_helper.from_array(np.full((1, 1, 1, 1), w, np.float32), f"{name}.w"))
        values.append(numpy_helper.from_array(np.full(1, b, np.float32), f"{name}.b"))
    nodes.insert(1, helper.make_node("Relu", ["p"], ["q"], name="relu"))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 2, 2]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    recipe = QdqRecipe(
        ranges={"x": (-1.0, 1.55), "p": (-1.0, 1.0), "q": (0.0, 2.55)},
        weights={"a": np.full((1, 1, 1, 1), 100, np.int8)},
        weight_scales={"a": np.full(1, 0.005, np.float32)},
        biases={"a": np.full(1, bias, np.float32)},
        in_float=frozenset({"b"}),
    )
    return model, recipe


def test_values_are_rounded_as_the_standard_says():
    model, recipe = _one_convolution(0.25)
    found = qdq.quantize(model, recipe)
    x = np.array([[-2.0, -0.104], [0.5, 0.127]], np.float32).reshape(1, 1, 2, 2)
    # x in steps of 0.01 from -1: -1, -0.10, 0.5, 0.13; by 100 steps of 0.005, plus 0.25; b is float
    expected = np.maximum(np.array([-1, -0.10, 0.5, 0.13]) * 0.5 + 0.25, 0)
    np.testing.assert_allclose(_run(found)(x)[0].ravel(), expected, atol=1e-6)
    assert model.graph.node[0].input[1] == "a.w"  # the given one is not changed


def test_a_bias_that_32_bits_cannot_hold_makes_weights_coarser():
    huge = np.array([1e6, 0.0], np.float32)
    steps = qdq.smallest_scales_for_bias(huge, 1e-6)
    assert np.abs(huge / (steps.astype(float) * 1e-6)).max() < 2**31


def test_ranges_are_the_lowest_and_highest_values(small: Path, inputs):
    model = onnx.load(small / "u2netp-demo-fp32-64-bN.onnx")
    tensors = ["stage1.rebnconvin", "input"]
    seen = _run(qdq.with_range_outputs(model, tensors))(inputs[0])
    network = u2net.fold_batch_norm(checkpoint.load_network(weights.find(DEMO), print))
    kept = {}
    network.stage1.rebnconvin.register_forward_hook(lambda m, i, o: kept.update(out=o))
    with torch.no_grad():
        network(torch.tensor(inputs[0]))
    expected = [0, float(kept["out"].max()), inputs[0].min(), inputs[0].max()]
    np.testing.assert_allclose([float(v) for v in seen], expected, atol=1e-4)


# --- rounding


def _correlated(seed: int, size: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((size, size)) @ np.diag(rng.uniform(0.05, 1, size))
    return torch.tensor(mixed @ mixed.T)


def _lost(weight, step, whole, covariance) -> float:
    error = whole.numpy() * step.numpy()[:, None] - weight.numpy().reshape(len(weight), -1)
    return float(np.einsum("oi,ij,oj->", error, covariance.numpy(), error))


def test_what_is_lost_is_made_good_by_what_follows():
    ratios = []
    for seed in range(20):
        weight = torch.tensor(
            np.random.default_rng(seed).normal(size=(4, 2, 3, 3)), dtype=torch.float
        )
        covariance = _correlated(seed, 18)
        step = weight.abs().amax((1, 2, 3)) / 7  # coarse, so that there is something to lose
        found = gptq.round_compensated(weight, step, covariance)
        assert torch.equal(found, found.round())
        nearest = (weight / step[:, None, None, None]).round().double().reshape(4, -1)
        ratios.append(
            _lost(weight, step, found, covariance) / _lost(weight, step, nearest, covariance)
        )
    assert np.median(ratios) < 0.6


def test_two_weights_are_rounded_about_as_well_as_can_be():
    # by exhaustion: the best of all whole numbers around them
    better = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        weight = torch.tensor(rng.uniform(-3, 3, (1, 2, 1, 1)), dtype=torch.float)
        covariance = _correlated(seed, 2)
        step = torch.ones(1)
        found = _lost(weight, step, gptq.round_compensated(weight, step, covariance), covariance)
        around = itertools.product(range(-4, 5), repeat=2)
        best = min(
            _lost(weight, step, torch.tensor([pair], dtype=torch.double), covariance)
            for pair in around
        )
        assert found >= best - 1e-9
        better += found <= best * 1.5 + 1e-3
    assert better >= 24


def test_wide_layers_are_rounded_in_groups(monkeypatch: pytest.MonkeyPatch):
    """Of more weights than can make good for each other; the groups do by themselves."""
    network = _Chain().requires_grad_(False)
    layers = {"second": network.second}
    effect = {"second": torch.ones(8, dtype=torch.double)}

    def found() -> gptq.RoundedLayer:
        return gptq.round_weights(
            network, layers, list(HALVES.search_inputs.values()), input_scales={"second": 0.01},
            sensitivities=effect, seed=0, track=_untracked,
        )["second"]  # fmt: skip

    whole = found()
    monkeypatch.setattr(moments, "MAX_GROUP_WEIGHTS", 36)  # four of eight input channels
    groups = found()
    assert groups.weight.shape == whole.weight.shape == (8, 8, 3, 3)
    np.testing.assert_array_equal(groups.scale, whole.scale)
    assert np.abs(groups.weight - whole.weight).max() < 20
    assert not np.array_equal(groups.weight, whole.weight)
    assert groups.predicted_error < 3 * whole.predicted_error


def test_uncorrelated_inputs_are_rounded_to_the_nearest():
    weight = torch.linspace(-0.5, 0.5, 36).reshape(1, 4, 3, 3)
    step = torch.tensor([1 / 127])
    found = gptq.round_compensated(weight, step, torch.eye(36, dtype=torch.double))
    assert torch.equal(found, (weight * 127).round().double().reshape(1, -1))


@pytest.mark.parametrize("channels", [2, 3, 16])
def test_neighbours_never_overflow_16_bits_on_a_cpu_without_vnni(channels: int):
    rng = np.random.default_rng(channels)
    weight = torch.tensor(rng.uniform(0.7, 1, (5, channels, 3, 3)), dtype=torch.float)
    covariance = _correlated(channels, channels * 9)
    for step in (gptq.smallest_scales(weight), weight.amax((1, 2, 3)) / 127):
        whole = gptq.round_compensated(weight, step, covariance).numpy().astype(int)
        by_tap = whole.reshape(5, channels, 9).transpose(0, 2, 1)  # what is summed lies together
        padded = np.pad(by_tap, ((0, 0), (0, 0), (0, channels % 2)))
        flat = np.pad(by_tap.reshape(5, -1), ((0, 0), (0, channels * 9 % 2)))
        for order in (padded, flat):
            pairs = order.reshape(5, -1, 2).sum(-1)
            assert np.abs(pairs).max() * 255 < 2**15
    # the step that is asked for holds the weights as they are
    fitted = gptq.round_compensated(weight, gptq.smallest_scales(weight), covariance)
    nearest = weight.reshape(5, -1) / gptq.smallest_scales(weight)[:, None]
    assert (fitted - nearest).abs().max() < 12


def test_rounding_in_blocks_is_rounding_one_by_one(monkeypatch: pytest.MonkeyPatch):
    weight = torch.tensor(np.random.default_rng(0).normal(size=(3, 4, 3, 3)), dtype=torch.float)
    step, covariance = weight.abs().amax((1, 2, 3)) / 7, _correlated(1, 36)
    whole = gptq.round_compensated(weight, step, covariance)
    monkeypatch.setattr(gptq, "BLOCK_COLUMNS", 5)
    assert torch.equal(gptq.round_compensated(weight, step, covariance), whole)


class _Tiny(nn.Module):
    """Two convolutions with a bend between, and a saliency in [0,1]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.second(torch.relu(self.first(x))))


def test_an_errors_effect_is_foretold():
    network = _Tiny().requires_grad_(False)
    rng = np.random.default_rng(0)
    seen = [rng.standard_normal((1, 3, 24, 24)).astype(np.float32) for _ in range(40)]
    effect = gptq.estimate_sensitivities(
        network, {"first": network.first}, seen, seed=0, track=_untracked
    )["first"]
    # against noise put into one channel of the first convolution's output
    for channel in (0, 5):
        measured = []
        for x in seen:
            plain = network.first(torch.tensor(x))
            noisy = plain.clone()
            noise = torch.tensor(rng.normal(0, 0.02, noisy[:, channel].shape), dtype=torch.float)
            noisy[:, channel] += noise
            one, two = (torch.sigmoid(network.second(torch.relu(y))) for y in (plain, noisy))
            measured.append(float(((one - two) ** 2).mean()))
        assert np.mean(measured) == pytest.approx(float(effect[channel]) * 0.02**2, rel=0.15)


def test_rounded_weights_give_the_same_mean_and_a_foretold_error():
    network = _Tiny().requires_grad_(False)
    rng = np.random.default_rng(1)
    seen = [rng.uniform(0, 1, (1, 3, 32, 32)).astype(np.float32) for _ in range(8)]
    layers = {"first": network.first}
    found = gptq.round_weights(
        network, layers, seen, input_scales={"first": 1 / 255},
        sensitivities={"first": torch.ones(8, dtype=torch.double)}, seed=0, track=_untracked,
    )["first"]  # fmt: skip
    other = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
    other.weight[:] = torch.tensor(found.weight * found.scale[:, None, None, None])
    other.bias[:] = torch.tensor(found.bias)
    apart = torch.cat([other(torch.tensor(x)) - network.first(torch.tensor(x)) for x in seen])
    assert apart.mean((0, 2, 3)).abs().max() < 1e-3
    damage = float((apart**2).mean((0, 2, 3)).sum())
    assert found.predicted_error == pytest.approx(damage, rel=0.15)
    assert 64 <= np.abs(found.weight).max() <= 127


def test_weights_in_bfloat16_lose_less_than_the_nearest_do():
    """A runtime rounds weights to the nearest; these are such as it leaves alone."""
    plain, made, nearest = (_Tiny().requires_grad_(False) for _ in range(3))
    rng = np.random.default_rng(2)
    seen = [rng.uniform(0, 1, (1, 3, 32, 32)).astype(np.float32) for _ in range(12)]
    gptq.round_weights_to_bf16(made, seen[:6], seed=0, track=_untracked)
    for parameter in nearest.parameters():
        parameter.copy_(parameter.bfloat16().float())
    for parameter in made.parameters():
        assert torch.equal(parameter, parameter.bfloat16().float())

    def lost(network: nn.Module) -> float:
        inputs = [torch.tensor(x) for x in seen[6:]]
        return float(np.mean([float(((network(x) - plain(x)) ** 2).mean()) for x in inputs]))

    assert 0 < lost(made) < 0.5 * lost(nearest)


def test_what_a_bias_loses_in_bfloat16_is_made_good_by_the_weights():
    torch.manual_seed(7)
    plain = nn.Conv2d(8, 4, 3, padding=1).requires_grad_(False)
    plain.bias[:] = 1.0038  # halfway to the next value that bfloat16 has
    made = copy.deepcopy(plain)
    rng = np.random.default_rng(3)
    seen = [rng.uniform(2, 4, (1, 8, 32, 32)).astype(np.float32) for _ in range(6)]
    gptq.round_weights_to_bf16(nn.Sequential(made), seen, seed=0, track=_untracked)
    apart = torch.cat([made(torch.tensor(x)) - plain(torch.tensor(x)) for x in seen])
    assert apart.mean((0, 2, 3)).abs().max() < 0.0038 / 4


# --- the search, on a network small enough to be searched in a second


class _Chain(nn.Module):
    """Convolutions one after the other, and a saliency with a subject."""

    def __init__(self, culprit: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        widths = [3, 8, 8, 8, 1]
        self.names = ["first", "second", "third", "side1"]
        for name, (given, made) in zip(self.names, itertools.pairwise(widths), strict=True):
            self.add_module(name, nn.Conv2d(given, made, 3, padding=1))
        self.outconv = nn.Conv2d(1, 1, 1)
        with torch.no_grad():
            for name in self.names:
                self.get_submodule(name).weight *= 2
            self.side1.weight -= self.side1.weight.mean()
            self.outconv.weight[:], self.outconv.bias[:] = 25.0, 0.0
            if culprit:
                # One channel much larger than its neighbours, and small weights after it, as in
                # stage2d of real weights: what rounding loses of these is multiplied by it.
                self.second.weight[0] *= 300
                self.second.bias[0] *= 300
                self.third.weight[:, 0] /= 300

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
            x = x if name == "side1" else torch.relu(x)
        return torch.sigmoid(self.outconv(x))

    def graph(self) -> onnx.ModelProto:
        nodes, values, given = [], [], "x"
        for name in [*self.names, "outconv"]:
            module = self.get_submodule(name)
            for part in ("weight", "bias"):
                array = getattr(module, part).detach().numpy()
                values.append(numpy_helper.from_array(array, f"{name}.{part}"))
            pad = module.padding[0]
            parts = [given, f"{name}.weight", f"{name}.bias"]
            nodes.append(helper.make_node("Conv", parts, [f"{name}_c"], name=name, pads=[pad] * 4))
            given = f"{name}_c"
            if name in self.names[:-1]:
                nodes.append(helper.make_node("Relu", [given], [f"{name}_r"], name=f"{name}_r"))
                given = f"{name}_r"
        nodes.append(helper.make_node("Sigmoid", [given], ["y"], name="last"))
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 24, 24])
            for name, channels in (("x", 3), ("y", 1))
        ]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 8
        return model


def _pictures(first: int) -> dict[str, np.ndarray]:
    return {
        str(seed): np.random.default_rng(seed).uniform(0, 1, (1, 3, 24, 24)).astype(np.float32)
        for seed in range(first, first + 4)
    }


HALVES = calibration.Calibration(_pictures(0), _pictures(10), synthetic=False)


def _search(
    asked: Quantization, halves: calibration.Calibration = HALVES, *, culprit: bool = False
) -> search.FloatLayerSearch:
    network = _Chain(culprit)
    return search.FloatLayerSearch(network, network.graph(), halves, asked, _run, _untracked)


def test_the_layer_that_does_the_damage_is_named_and_kept_in_float():
    plain = _search(Quantization(min_iou=0.9, max_mae=0.05))
    assert plain.choose() == frozenset()
    told = _search(Quantization(min_iou=0.9, max_mae=0.05), culprit=True)
    assert told.layers_by_error[0] == "third"
    chosen = told.choose()
    assert chosen == {"third"}
    found = told.make_record(chosen)
    assert found.kept
    assert found.curve[0].mask_iou < 0.9 < found.result.mask_iou
    # of 3*8*9, 8*8*9 twice, 8*9 and 1 multiply-adds a pixel: the first two are in whole numbers,
    # for what they give is rounded too or goes to float, as the third's is
    assert found.share <= (216 + 576) / (216 + 576 + 576 + 72 + 1)


def test_what_is_not_needed_goes_back_into_whole_numbers():
    told = _search(Quantization(min_iou=0.9, max_mae=0.05), culprit=True)
    told.layers_by_error = ["first", "second", "third", "side1"]  # foretold wrongly
    assert told.choose() == {"third"}


def test_pictures_that_judge_have_no_part_in_the_search():
    asked = Quantization(min_iou=0.9, max_mae=0.05)
    other = dataclasses.replace(HALVES, validation_inputs=_pictures(20))
    one, two = (_search(asked, halves, culprit=True) for halves in (HALVES, other))
    chosen = one.choose()
    assert two.choose() == chosen
    assert two.quantized_model(chosen) == one.quantized_model(chosen)
    assert two.make_record(chosen).result != one.make_record(chosen).result


def test_a_search_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("U2EXPORT_CACHE", str(tmp_path))
    asked = Quantization(min_iou=0.99999, max_mae=1e-5)  # so that all are tried
    computed = []
    real = search.FloatLayerSearch.measure_masks

    def counted(self, model, pictures, count):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(count)
        return real(self, model, pictures, count)

    monkeypatch.setattr(search.FloatLayerSearch, "measure_masks", counted)
    told = _search(asked)
    with pytest.raises(KeyboardInterrupt):
        told.choose()
    assert computed == [0, 1]
    notes = sorted((tmp_path / "quantized").iterdir())
    assert len(notes) == 2
    notes[0].write_text(notes[0].read_text()[:10])  # cut short: that one is found anew
    computed.clear()
    told = _search(asked)
    with pytest.raises(KeyboardInterrupt):
        told.choose()
    assert len(computed) == 2
    assert len(set(computed) & {0, 1}) == 1
    assert 2 in computed


def test_notes_that_cannot_be_kept_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    point = MaskQuality(in_float=0, mask_iou=1, worst_iou=1, mask_mae=0)
    notebook = SearchCache(["a"], tmp_path / "file" / "notes")
    assert notebook.get_or_compute(b"graph", lambda: point) == point
    assert "what the search finds cannot be kept" in capsys.readouterr().err


def test_without_a_mask_nothing_can_be_judged():
    flat, other = (
        {name: np.zeros_like(x) for name, x in half.items()}
        for half in (HALVES.search_inputs, HALVES.validation_inputs)
    )
    nothing = dataclasses.replace(HALVES, search_inputs=flat, validation_inputs=other)
    half = dataclasses.replace(HALVES, validation_inputs=other)
    for halves in (nothing, half):
        with pytest.raises(ExportError, match="half of the calibration pictures have no subject"):
            _search(Quantization(), halves).choose()
    told = _search(Quantization(best_effort=True), nothing)
    assert told.make_record(told.choose()).result.mask_iou is None


def test_figures_are_compared_with_what_was_asked():
    asked = Quantization(min_iou=0.98, max_mae=0.01)
    good = MaskQuality(in_float=0, mask_iou=0.985, worst_iou=0.9, mask_mae=0.009)
    assert meets_request(good, asked)
    assert not meets_request(good, asked, 0.5)
    assert not meets_request(good.model_copy(update={"mask_iou": 0.979}), asked)
    assert not meets_request(good.model_copy(update={"mask_mae": 0.011}), asked)


# --- calibration pictures


def test_halves_do_not_depend_on_names_or_order(pictures: Path, tmp_path: Path):
    paths = sorted(pictures.iterdir())
    for place, path in enumerate(reversed(paths)):
        (tmp_path / f"{place}.png").write_bytes(path.read_bytes())
    one = calibration.prepare_calibration(paths, SPEC)
    two = calibration.prepare_calibration(sorted(tmp_path.iterdir()), SPEC)
    assert (list(one.search_inputs), list(one.validation_inputs)) == (
        list(two.search_inputs),
        list(two.validation_inputs),
    )
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert set(one.search_inputs) | set(one.validation_inputs) == hashes
    assert not set(one.search_inputs) & set(one.validation_inputs)
    assert abs(len(one.search_inputs) - len(one.validation_inputs)) <= 1


def test_a_picture_that_is_there_twice_counts_once(pictures: Path, tmp_path: Path):
    paths = sorted(pictures.iterdir())[:7]
    copy = tmp_path / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    with pytest.raises(InputError, match="needs 8 different calibration pictures or more, got 7"):
        calibration.prepare_calibration([*paths, copy], SPEC)


def test_pictures_that_cannot_be_read_are_named(pictures: Path, tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"cannot be used: .*broken\.png"):
        calibration.prepare_calibration([*sorted(pictures.iterdir()), broken], SPEC)


def test_drawn_pictures_calibrate_with_a_warning(capsys: pytest.CaptureFixture[str]):
    found = calibration.prepare_calibration([], SPEC)
    assert found.synthetic
    assert len(found.search_inputs) == len(found.validation_inputs) == 8
    assert "drawn pictures calibrate this" in capsys.readouterr().err


# --- artifacts


def test_two_exports_are_equal_to_the_byte(made: Path, asked, tmp_path: Path):
    spec = ExportSpec(DEMO, SIZE, Precision.INT8, quantization=asked)
    build_artifact("openvino", spec, weights.find(DEMO), tmp_path)
    for name in (f"{STEM}.onnx", f"{STEM}.xml", f"{STEM}.bin"):
        assert (made / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_manifest_tells_what_was_asked_and_found(made: Path, asked: Quantization):
    artifact = registry.open_artifact(made / f"{STEM}.xml")
    facts, found = artifact.facts.quantization, read_int8_record(artifact)
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in asked.pictures}
    assert set(facts.calibration) == hashes == set(found.searched) | set(found.judged)
    assert (facts.min_iou, facts.max_mae, facts.seed) == (0.9, 0.03, 0)
    assert found.kept
    assert artifact.int8_share >= 0.95
    assert len(found.why) == 118


def test_other_pictures_are_another_request(asked: Quantization):
    """So that what lies beside the target is not taken for the parent."""
    source, facts = weights.find(DEMO), []
    fewer = dataclasses.replace(asked, pictures=asked.pictures[:8])
    for one in (asked, dataclasses.replace(asked), fewer, dataclasses.replace(asked, seed=1)):
        spec = ExportSpec(DEMO, SIZE, Precision.INT8, quantization=one)
        facts.append(converted_facts(source, spec, {}))
    assert facts[0] == facts[1]
    assert facts[0] != facts[2]
    assert facts[0] != facts[3]


def test_a_budget_that_cannot_be_met_writes_nothing_unless_told_to(
    asked: Quantization, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    real = gptq.smallest_scales
    monkeypatch.setattr(gptq, "smallest_scales", lambda weight: real(weight) * 400)
    monkeypatch.setattr(search, "FLOAT_LAYER_COUNTS", (0, 1))
    spec = ExportSpec(DEMO, SIZE, Precision.INT8, quantization=asked)
    with pytest.raises(ExportError, match=r"at best, with \d+ layers in float32; asked were 0.9"):
        build_artifact("onnx", spec, weights.find(DEMO), tmp_path)
    assert not list(tmp_path.glob("u2netp*"))
    anyway = dataclasses.replace(asked, best_effort=True)
    spec = dataclasses.replace(spec, quantization=anyway)
    artifact = build_artifact("onnx", spec, weights.find(DEMO), tmp_path)
    found = read_int8_record(artifact)
    assert not found.kept
    assert found.result.mask_iou < 0.9
    assert "8 bits keep masks to IoU" in capsys.readouterr().err


def test_an_engine_is_built_of_the_signed_form_with_the_rest_in_half(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = registry.open_artifact(made / f"{STEM}.engine")
    assert engine.facts.precision is Precision.INT8
    assert engine.path.stat().st_size > 1_000_000
    given = []
    monkeypatch.setattr(
        build, "build_in_subprocess", lambda order, content: given.append(content) or b"engine"
    )
    parent = registry.open_artifact(made / f"{STEM}.onnx")
    export(parent, ExportSpec(DEMO, SIZE, Precision.INT8), tmp_path / "x.engine")
    model = onnx.load_from_string(given[0])
    onnx.checker.check_model(model, full_check=True)
    assert {o.version for o in model.opset_import if not o.domain} == {19}
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    assert TensorProto.UINT8 not in kinds.values()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert kinds[node.input[1]] == TensorProto.FLOAT16
            assert kinds[node.input[2]] == TensorProto.INT8


def test_steps_that_half_precision_cannot_hold_leave_the_rest_in_float32(
    whole: onnx.ModelProto, tmp_path: Path, made: Path, capsys
):
    """As of a channel that was pruned: all its weights are 0."""
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    for item in model.graph.initializer:
        if item.name == "stage3.rebnconv2.weight_step":
            steps = numpy_helper.to_array(item).copy()
            steps[0] = 1e-8
            item.CopyFrom(numpy_helper.from_array(steps, item.name))
    onnx.save(model, tmp_path / "x.onnx")
    facts = registry.open_artifact(made / f"{STEM}.onnx").facts
    found = onnx.load_from_string(prepare_onnx(tmp_path / "x.onnx", facts))
    assert TensorProto.FLOAT16 not in {item.data_type for item in found.graph.initializer}
    assert "steps too small for half precision" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("openvino", {"batch": None, "all_outputs": True, "opset": 22}),
        ("onnx", {"batch": 2, "opset": 16}),
    ],
)
def test_int8_has_every_option_of_an_export(name, options, asked, inputs, tmp_path: Path):
    spec = ExportSpec(DEMO, SIZE, Precision.INT8, quantization=asked, **options)
    artifact = build_artifact(name, spec, weights.find(DEMO), tmp_path)
    with registry.open_runner(artifact, RunRequest(precision=Precision.INT8)) as runner:
        two = np.concatenate(inputs[:2])
        maps = runner.maps(two)
        assert len(maps) == (7 if options.get("all_outputs") else 1)
        assert maps[0].shape == (2, 1, SIZE, SIZE)
    network = checkpoint.load_network(weights.find(DEMO), print)
    with torch.no_grad():
        expected = network(torch.tensor(two)).numpy()
    for place in range(2):
        assert compare_maps(expected[place, 0], maps[0][place, 0]).mask_mae < 0.03


def test_signed_8_bits_that_lose_the_mask_are_refused(made: Path, tmp_path: Path):
    parent = registry.open_artifact(made / f"{STEM}.onnx")
    told = json.loads(parent.facts.build[QUANTIZATION_KEY])
    told["signed"]["mask_iou"] = 0.5
    lossy = {**parent.facts.build, QUANTIZATION_KEY: json.dumps(told)}
    parent = dataclasses.replace(parent, facts=parent.facts.model_copy(update={"build": lossy}))
    backend = registry.load("tensorrt")
    spec = ExportSpec(DEMO, SIZE, Precision.INT8)
    with pytest.raises(ExportError, match=r"signed form .* IoU 0\.5000"):
        backend.export(parent, spec, tmp_path / "x.engine")


@pytest.mark.parametrize(("flags", "said"), [("avx2", True), ("avx2 avx_vnni", False)])
def test_a_cpu_on_which_int8_is_slow_is_told(tmp_path: Path, flags: str, said: bool):
    (tmp_path / "cpuinfo").write_text(f"model name : x\nflags : {flags}\n")
    phrase = hardware.slow_int8_reason(tmp_path / "cpuinfo")
    assert phrase == ("this CPU has none of VNNI, AMX, NEON dot product" if said else "")
    assert hardware.slow_int8_reason(tmp_path / "absent") == ""


def test_a_foreign_file_is_not_said_to_be_calibrated(made: Path):
    ours = registry.open_artifact(made / f"{STEM}.onnx")
    theirs = dataclasses.replace(ours.with_facts(quantization=None, build={}), foreign=True)
    spec = ExportSpec(DEMO, SIZE, Precision.INT8)
    assert converted_facts(theirs, spec, {}).quantization is None
    assert converted_facts(ours, spec, {}).quantization == ours.facts.quantization
    assert theirs.int8_share is None


def test_an_export_is_held_to_what_was_asked_of_it_and_no_closer(made: Path):
    artifact = registry.open_artifact(made / f"{STEM}.onnx")
    budget = requested_budget(artifact)  # 0.9 and 0.03 were asked
    assert (budget.mask_iou, budget.mask_mae) == (0.9, 0.03)
    assert budget.worst_iou < 0.8
    strict = artifact.facts.quantization.model_copy(update={"min_iou": 0.9999, "max_mae": 1e-5})
    assert requested_budget(artifact.with_facts(quantization=strict)) == BUDGETS[Precision.INT8]
    found = read_int8_record(artifact)
    poor = found.model_copy(
        update={"result": found.result.model_copy(update={"mask_iou": 0.8, "mask_mae": 0.05})}
    )
    effort = artifact.facts.quantization.model_copy(update={"best_effort": True})
    notes = {**artifact.facts.build, QUANTIZATION_KEY: poor.model_dump_json()}
    held = requested_budget(artifact.with_facts(quantization=effort, build=notes))
    assert held.mask_iou == pytest.approx(0.4)  # three times what was lost
    assert held.mask_mae == pytest.approx(0.15)
    assert held.raw_mean < 1
    for judged in (artifact, artifact.with_facts(quantization=effort, build=notes)):
        assert budget_for(judged) == BUDGETS[Precision.INT8]  # a judge asks nobody


# --- what ran


def _ran(whole: int, rest: int, *, share: float | None = 0.97, demanded=None) -> str:
    layers = [
        Layer(name="a", kind="Conv", device="cpu", precision="int8", macs=whole),
        Layer(name="b", kind="Conv", device="cpu", precision="fp32", macs=rest),
    ]
    executed = Execution(
        runtime="acted 1", device=Device.CPU, stored=Precision.INT8, whole=share, layers=layers
    )
    return execution_mismatch(executed, RunSpec(Device.CPU, 2, demanded), "x.onnx")


def test_whole_numbers_that_were_computed_in_float_are_complained_of():
    assert _ran(97, 3) == ""
    assert _ran(97, 3, demanded=Precision.INT8) == ""
    assert "40.0% of the multiply-adds ran in int8 where 97.0% should" in _ran(40, 60)
    assert "where 50.0% should" in _ran(40, 60, share=None)
    assert _ran(0, 0) == ""  # that some did is all that is known
    assert "did something else" in _ran(97, 3, demanded=Precision.FP32)


@pytest.mark.parametrize(("device", "named"), [(Device.CUDA, ""), (Device.CPU, "b fp16 on cpu")])
def test_what_int8_leaves_runs_in_half_precision_on_a_gpu_only(device: Device, named: str):
    layers = [
        Layer(name="a", kind="Conv", device=str(device), precision="int8"),
        Layer(name="b", kind="Conv", device=str(device), precision="fp16"),
    ]
    executed = Execution(
        runtime="acted 1", device=device, stored=Precision.INT8, whole=0.97, layers=layers
    )
    assert named in execution_mismatch(executed, RunSpec(device, 2), "x.engine")
    assert bool(execution_mismatch(executed, RunSpec(device, 2), "x.engine")) == bool(named)
    none = executed.model_copy(update={"layers": executed.layers[1:]})
    assert "nothing ran in int8" in execution_mismatch(none, RunSpec(Device.CUDA, 2), "x") or named


def test_a_layer_in_bfloat16_is_no_part_of_int8():
    layer = Layer(name="b", kind="Conv", device="cpu", precision="bf16", macs=1)
    other = layer.model_copy(update={"precision": "int8", "macs": 99, "name": "a"})
    executed = Execution(
        runtime="acted 1", device=Device.CPU, stored=Precision.INT8, whole=0.9,
        layers=(other, layer),
    )  # fmt: skip
    with pytest.raises(ParityError, match="b bf16 on cpu"):
        check_execution(executed, RunSpec(Device.CPU, 2), "x.xml")


# --- the command line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--int8", "--fp16"], "--fp16 and --int8 are 2 files: ask for one at a time"),
        (["--calibration", "pictures"], "--calibration goes with --int8 or --bf16"),
        (["--min-iou", "0.9"], "--min-iou goes with --int8"),
        (["--bf16", "--max-mae", "0.1"], "--max-mae goes with --int8: add it"),
        (["--int8", "--min-iou", "1.5"], "min-iou must be from 0 to below 1"),
        (["--int8", "--max-mae", "0"], "max-mae must be above 0"),
        (["--int8", "--seed", "-1"], "seed must be 0 or more"),
        (["--int8", "--calibration", "few"], "needs 8 different calibration pictures"),
    ],
)
def test_a_request_that_makes_no_sense_is_status_2(command, tmp_path, pictures, words, sentence):
    (tmp_path / "pictures").symlink_to(pictures)
    (tmp_path / "few").mkdir()
    for path in sorted(pictures.iterdir())[:3]:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    done = command("onnx", "--model", "u2netp-demo", "--size", "64", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not list(tmp_path.glob("exported/u2netp*"))


def test_the_torch_backend_has_no_int8(command):
    done = command("torch", "--model", "u2netp-demo", "--int8")
    assert done.returncode == 2
    assert "not int8" in done.stderr


def test_sensitivity_tells_which_layers_stayed_and_why(command, made, tmp_path):
    done = command("sensitivity", made / f"{STEM}.xml", "--html", "s.html")
    assert done.returncode == 0, done.stderr
    found = read_int8_record(registry.open_artifact(made / f"{STEM}.xml"))
    assert next(iter(found.why)) in done.stdout
    assert f"{found.result.mask_iou:.4f}" in done.stdout
    page = (tmp_path / "s.html").read_text()
    assert "Plotly.newPlot" in page
    assert next(iter(found.why)) in page
    told = json.loads(command("sensitivity", made / f"{STEM}.onnx", "--json").stdout)
    assert told["result"]["mask_iou"] == found.result.mask_iou


def test_sensitivity_of_another_file_is_status_2(command, small):
    done = command("sensitivity", small / "u2netp-demo-fp32-64-bN.onnx")
    assert done.returncode == 2
    assert "was not brought to 8 bits by u2export" in done.stderr
