"""A backend in a separate package is picked up by every command and by the contract tests."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COLOUR = "#a05195"


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
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(target), *([before] if before else [])])}


@pytest.fixture
def toy(command, installed: dict[str, str], tmp_path: Path) -> Path:
    """An artifact of the plugin's own format, 64 pixels a side."""
    made = command("toy", "--model", "u2netp-demo", "--size", "64", env=installed)
    assert (made.returncode, made.stdout) == (0, "exported/u2netp-demo-fp32-64.toy\n"), made.stderr
    return tmp_path / made.stdout.strip()


def test_it_imports_nothing_of_the_package_but_the_plugin_module():
    (source,) = (HERE / "plugin").rglob("*.py")
    nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if (name or "").startswith("u2export")} == {"u2export.plugin"}


def test_the_listings_know_it(command, installed: dict[str, str]):
    listed = json.loads(command("backends", "--json", env=installed).stdout)
    assert [one["name"] for one in listed] == ["onnx", "openvino", "tensorrt", "torch", "toy"]
    assert "toy" in command("--help", env=installed).stdout
    report = json.loads(command("doctor", "--json", env=installed).stdout)
    (told,) = [one for one in report["backends"] if one["name"] == "toy"]
    assert (told["export"], told["run"]) == ("", {"cpu": ""})
    assert (told["suffixes"], told["precisions"]) == ([".toy"], ["fp32", "fp16"])


def test_its_command_refuses_what_it_lacks(command, installed: dict[str, str]):
    for words, sentence in (
        (["--int8"], "toy backend exports fp32, fp16, not int8"),
        (["--opset", "17"], "the toy backend has no --opset"),
    ):
        refused = command("toy", *words, env=installed)
        assert refused.returncode == 2
        assert sentence in refused.stderr


def test_it_runs_and_tells_what_ran(toy: Path, command, installed, picture_file: Path):
    done = command("run", toy, picture_file, "--out", "mask.png", env=installed)
    assert (done.returncode, done.stdout) == (0, "mask.png\n"), done.stderr
    account = json.loads(command("inspect", toy, "--json", env=installed).stdout)
    assert account["executed"]["runtime"] == "toy 1.0"
    assert account["macs"] == {"fp32 on cpu": 1.0}
    assert not account["complaint"]


def test_parity_and_bisect_take_it(toy: Path, command, installed, picture_file: Path):
    judged = command("parity", "torch", toy, "--json", "parity.json", env=installed)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    verified = command("verify", toy, env=installed)
    assert "passed" in verified.stdout
    found = command("bisect", "torch", toy, "--picture", picture_file, "--json", env=installed)
    assert found.returncode == 0, found.stderr
    bisection = json.loads(found.stdout)
    assert (bisection["culprit"], bisection["unmatched"]) == ("", [])


def test_its_half_precision_is_stored_and_said_so(command, installed: dict[str, str]):
    made = command("toy", "--model", "u2netp-demo", "--size", "64", "--fp16", env=installed)
    assert made.returncode == 0, made.stderr
    account = command("inspect", made.stdout.strip(), env=installed)
    assert "stored fp16, computed fp32 on cpu" in account.stdout


def test_it_is_measured_drawn_in_its_colour_and_recommended(command, installed, tmp_path: Path):
    # The masks of a smaller input are compared with those of the model's own, and differ.
    made = command("toy", "--model", "u2netp-demo", env=installed)
    toy = tmp_path / made.stdout.strip()
    words = ["--duration", "1", "--json", "bench.json", "--html", "bench.html"]
    done = command("bench", toy, *words, env=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (row["backend"], row["runtime"], row["mask"]["passed"]) == ("toy", "toy 1.0", True)
    assert COLOUR in (tmp_path / "bench.html").read_text(encoding="utf-8")
    chosen = command("recommend", "bench.json", "--min-iou", "0.99", "--json", env=installed)
    assert json.loads(chosen.stdout)["winner"] == toy.name


def test_auto_tries_it(command, installed: dict[str, str], tmp_path: Path):
    words = ["--model", "u2netp-demo", "--sizes", "64", "--duration", "1", "--json", "auto.json"]
    done = command("auto", *words, env=installed)
    rows = {row["file"] for row in json.loads((tmp_path / "auto.json").read_text())["rows"]}
    assert {"u2netp-demo-fp32-64.toy", "u2netp-demo-fp16-64.toy"} <= rows, done.stderr


def test_it_keeps_every_promise_of_the_contract(installed: dict[str, str], folder_of_traces: Path):
    words = ["-m", "pytest", "-q", "-p", "no:xdist", str(HERE / "test_contract.py")]
    words += ["--backend", "toy", "--traces", str(folder_of_traces)]
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
    assert "toy" not in [one["name"] for one in json.loads(command("backends", "--json").stdout)]
