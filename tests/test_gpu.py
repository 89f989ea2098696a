"""The benchmark of a GPU, rehearsed on a CPU: everything runs, small."""

from __future__ import annotations

import numpy as np
import pytest
import torch

gpu = pytest.importorskip("gpu")


class _Args:
    """What the command line gives for a rehearsal."""

    weights = None
    device = "cpu"
    batches = (2,)
    rounds = 3
    minutes = 8.0
    rehearse = True


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "tests", lambda args: "no tests in a test")
        patch.setattr(gpu, "WAYS", gpu.WAYS[:-1])  # compiled in bf16 as in fp16
        # the small network instead of the full one, which takes no other way
        patch.setattr(gpu, "MODELS", {**gpu.MODELS, "u2net": gpu.MODELS["u2netp"]})
        real = gpu.artifacts
        # one network's are enough, and the small one's are quicker
        patch.setattr(gpu, "artifacts", lambda s, a: real(s, a) if "demo" in s.facts.model else [])
        yield gpu.measured(_Args())


def test_every_way_is_measured_or_says_why_not(measured):
    report, shares = measured
    assert report.baseline == "PyTorch eager fp32 NCHW of the same network and batch"
    rows = [row for row in report.rows if row.backend == "torch"]
    assert len(rows) == 2 * len(gpu.WAYS)
    for row in rows:
        if row.failed:
            assert "graph" in row.name, row
        else:
            assert row.latency.median > 0
            assert row.throughput.pictures == pytest.approx(1e3 * row.batch / row.latency.median)
    graphs = {row.failed for row in rows if "graph" in row.name}
    assert graphs == {"RuntimeError: CUDA graphs need a GPU"}
    assert len(shares) == 2 + sum(not row.failed for row in rows)


def test_artifacts_are_measured_where_their_runtime_is(measured):
    report, _ = measured
    found = {row.backend: row for row in report.rows if row.backend != "torch"}
    assert found["onnx"].latency.median > 0
    assert found["onnx"].device == "cpu"
    assert found["tensorrt"].failed == "it does not run on cpu"


def test_masks_are_compared_where_weights_are_real(measured):
    report, _ = measured
    for row in report.rows:
        if row.backend != "torch" or row.failed:
            continue
        if row.name.startswith("u2netp-demo"):
            assert row.mask.passed, row
        else:
            assert row.unjudged


def test_ratios_are_against_the_same_network_and_batch(measured):
    report, _ = measured
    for ratio in report.ratios:
        assert str(gpu.BASELINE) not in ratio.name
        assert 0 < ratio.low <= ratio.ratio <= ratio.high
    assert any(note.startswith("ceiling: copy") for note in report.notes)
    assert any("the network takes" in note for row in report.rows for note in row.notes)


def test_a_wrong_mask_is_told(monkeypatch: pytest.MonkeyPatch):
    lane = gpu.Lane(gpu.BASELINE, 2, call=lambda x: 1 - x[:, :1])
    ramp = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (1, 3, 8, 1))
    found = gpu.judged(lane, ramp, [ramp[0, 0]], "cpu")
    assert not found.passed
    assert "mask_iou" in found.reasons[0]
    lane.call = lambda x: x[:, :1]
    assert gpu.judged(lane, ramp, [ramp[0, 0]], "cpu").passed
    lane.call = lambda x: x[:, :1] * float("nan")
    assert not gpu.judged(lane, ramp, [ramp[0, 0]], "cpu").passed


def test_pictures_that_fill_no_batch_are_filled_up_and_all_are_compared():
    sizes = []

    def call(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x[:, :1]

    inputs = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    lane = gpu.Lane(gpu.BASELINE, 2, call=call)
    found = gpu.judged(lane, inputs, list(inputs[:, 0]), "cpu")
    assert (sizes, found.pictures, found.passed) == ([2, 2], 3, True)


def test_work_is_counted_as_by_hand():
    layer = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
    flops, moved = gpu.work_of(layer, torch.zeros(1, 3, 8, 8))
    assert flops == 2 * 8 * 8 * 4 * 3 * 9
    assert moved == 4 * (3 * 64 + 4 * 3 * 9 + 4 * 64)
