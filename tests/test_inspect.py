from __future__ import annotations

import json
from pathlib import Path

import pytest

from u2export.core import registry
from u2export.core.enums import Device, Precision
from u2export.core.execution import Execution, Layer
from u2export.diagnostics.inspect import Inspection, format_inspection, raise_if_mismatch
from u2export.errors import ParityError


@pytest.mark.parametrize("suffix", ["onnx", "xml", "safetensors"])
def test_the_command_tells_shares_and_says_that_all_is_as_asked(command, exported: Path, suffix):
    done = command("inspect", exported / f"u2netp-demo-fp32.{suffix}")
    assert done.returncode == 0, done.stderr
    assert "stored fp32, computed fp32 on cpu" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "fp32 on cpu │" in line)
    assert row.split("│")[2:4] == [" 100.0% ", " 100.0%        "]
    assert "what ran is what was asked" in done.stdout


def test_the_command_names_every_layer_and_speaks_json(command, exported: Path):
    artifact = exported / "u2netp-demo-fp32.xml"
    done = command("inspect", artifact, "--layers")
    assert "stage2d.rebnconv1d" in done.stdout
    told = json.loads(command("inspect", artifact, "--json", "--threads", "1").stdout)
    assert told["sha256"] == dict(registry.open_artifact(artifact).files)
    assert told["macs"] == {"fp32 on cpu": 1.0}
    assert (told["threads"], told["complaint"]) == (1, "")
    assert sum(1 for layer in told["executed"]["layers"] if layer["macs"]) == 119


def test_a_demand_that_is_not_met_is_status_6_and_the_table_is_still_printed(command, exported):
    done = command("inspect", exported / "u2netp-demo-fp16.onnx", "--precision", "fp16")
    assert done.returncode == 6
    assert "fp32 on cpu" in done.stdout
    assert done.stderr.count("error: ") == 1
    assert "asked to compute in fp16 on cpu" in done.stderr


def test_an_account_without_multiply_adds_says_so_instead_of_zero():
    layer = Layer(name="a", kind="conv", device="cuda", precision="fp16")
    account = Inspection(
        artifact="x.engine",
        sha256={},
        asked=None,
        threads=1,
        executed=Execution(
            runtime="acted 1.0", device=Device.CUDA, stored=Precision.FP16, layers=(layer,)
        ),
        layers={"fp16 on cuda": 1.0},
        macs={},
        complaint="",
    )
    assert "not told" in format_inspection(account)


def test_a_complaint_is_demanded():
    with pytest.raises(ParityError, match="layer b did else"):
        raise_if_mismatch(Inspection.model_construct(complaint="layer b did else"))
