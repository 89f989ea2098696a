"""A backend in a separate package is picked up by the commands and by the contract tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the package installed."""
    target = tmp_path_factory.mktemp("installed")
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--target", str(target), str(HERE / "plugin")],
        check=True,
        capture_output=True,
    )
    return {"PYTHONPATH": str(target)}


def test_the_commands_know_it(command, installed: dict[str, str], picture_file: Path, tmp_path):
    listed = json.loads(command("backends", "--json", env=installed).stdout)
    assert [one["name"] for one in listed] == ["onnx", "openvino", "ort", "tensorrt", "torch"]
    assert "ort" in command("--help", env=installed).stdout
    report = json.loads(command("doctor", "--json", env=installed).stdout)
    assert next(one for one in report["backends"] if one["name"] == "ort")["run"] == {"cpu": ""}
    made = command("ort", "--model", "u2netp-demo", "--size", "64", env=installed)
    assert (made.returncode, made.stdout) == (0, "exported/u2netp-demo-fp32-64.ort\n"), made.stderr
    artifact = tmp_path / made.stdout.strip()
    done = command("run", artifact, picture_file, "--out", "mask.png", env=installed)
    assert (done.returncode, done.stdout) == (0, "mask.png\n"), done.stderr
    account = command("inspect", artifact, env=installed)
    assert "what ran is what was asked" in account.stdout
    refused = command("ort", "--fp16", env=installed)
    assert refused.returncode == 2
    assert "ort backend exports fp32, not fp16" in refused.stderr


def test_it_keeps_every_promise_of_the_contract(installed: dict[str, str], folder_of_traces: Path):
    words = ["-m", "pytest", "-q", "-p", "no:xdist", str(HERE / "test_contract.py")]
    words += ["--backend", "ort", "--traces", str(folder_of_traces)]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **installed},
        cwd=HERE.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_without_the_package_nothing_knows_it(command):
    assert "ort" not in [one["name"] for one in json.loads(command("backends", "--json").stdout)]
