from __future__ import annotations

import pytest

from u2export.core.enums import Device, Precision
from u2export.core.execution import (
    UNKNOWN,
    Execution,
    Layer,
    check_execution,
    execution_mismatch,
    unrequested_layers,
)
from u2export.core.requests import RunSpec
from u2export.errors import ParityError

CPU = RunSpec(Device.CPU, 2)
CUDA = RunSpec(Device.CUDA, 2)


def _layer(name: str, precision: str, device: str = "cpu", macs: int = 0, moves: bool = False):
    return Layer(name=name, kind="Conv", device=device, precision=precision, macs=macs, moves=moves)


def _account(*layers: Layer, stored: Precision = Precision.FP32, device: Device = Device.CPU):
    return Execution(runtime="acted 1.0", device=device, stored=stored, layers=layers)


def test_shares_count_what_computes_and_not_what_moves():
    account = _account(
        _layer("a", "fp32", macs=300),
        _layer("b", "bf16", macs=100),
        _layer("c", "bf16"),
        _layer("cast", "fp16", moves=True, macs=1000),
    )
    assert account.share_of_layers() == {"bf16 on cpu": 2 / 3, "fp32 on cpu": 1 / 3}
    assert account.share_of_macs() == {"fp32 on cpu": 0.75, "bf16 on cpu": 0.25}
    assert account.summary() == "stored fp32, computed 75.0% fp32 on cpu, 25.0% bf16 on cpu"


def test_half_that_is_only_stored_may_be_computed_in_float32_on_a_cpu():
    account = _account(_layer("a", "fp32", macs=1), stored=Precision.FP16)
    assert account.summary() == "stored fp16, computed fp32 on cpu"
    assert execution_mismatch(account, CPU, "x.onnx") == ""


@pytest.mark.parametrize(
    ("stored", "ran", "asked"),
    [
        (Precision.FP32, "bf16", CPU),  # silent bfloat16
        (Precision.FP32, "fp16", CPU),
        (Precision.FP16, "bf16", CPU),
        (Precision.FP16, "fp32", RunSpec(Device.CPU, 2, Precision.FP16)),  # demanded, not stored
        (Precision.FP32, "fp32", RunSpec(Device.CPU, 2, Precision.BF16)),
        (Precision.FP32, UNKNOWN, CPU),  # not told is not proved
    ],
)
def test_a_precision_that_was_not_asked_is_named(stored, ran, asked):
    account = _account(_layer("stage1.a", ran), stored=stored)
    with pytest.raises(ParityError, match=rf"1 of 1 layers .* in acted 1.0: stage1.a {ran} on cpu"):
        check_execution(account, asked, "x")


def test_float32_in_a_half_precision_engine_and_a_layer_on_the_cpu_are_named():
    account = _account(
        _layer("a", "fp16", "cuda"),
        _layer("b", "fp32", "cuda"),
        _layer("c", "fp16", "cpu"),
        _layer("ends", "fp32", "cuda", moves=True),
        stored=Precision.FP16,
        device=Device.CUDA,
    )
    assert [layer.name for layer in unrequested_layers(account, CUDA)] == ["b", "c"]
    assert execution_mismatch(account, CUDA, "x.engine") == (
        "x.engine was asked to compute in fp16 on cuda, but 2 of 3 layers did something else in "
        "acted 1.0: b fp32 on cuda, c fp16 on cpu"
    )


def test_a_foreign_file_asks_for_no_precision_but_must_tell_it():
    foreign = Execution(
        runtime="acted 1.0", device=Device.CPU, stored=None, layers=(_layer("a", "fp16"),)
    )
    assert execution_mismatch(foreign, CPU, "x") == ""
    for untold in (UNKNOWN, "tf32", "fp16+fp32"):
        account = foreign.model_copy(update={"layers": (_layer("a", untold),)})
        assert f"a {untold} on cpu" in execution_mismatch(account, CPU, "x")


def test_only_three_of_many_layers_are_named():
    account = _account(*(_layer(f"l{i}", "bf16") for i in range(5)))
    assert execution_mismatch(account, CPU, "x").endswith(
        "l0 bf16 on cpu, l1 bf16 on cpu, l2 bf16 on cpu and 2 more"
    )


def test_an_account_of_nothing_proves_nothing():
    with pytest.raises(ParityError, match="tells of no layer that computes"):
        check_execution(_account(_layer("a", "fp32", moves=True)), CPU, "x")
