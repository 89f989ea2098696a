from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from u2export import registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "u2export"
# ARCHITECTURE.md, section 3: imports go down this list only, never sideways.
LAYERS = [
    [
        "errors",
        "machine",
        "plugins",
        "deferred",
        "progress",
        "onnxfile",
        "steady",
        "webpage",
        "flow",
        "png",
        "webp",
    ],
    ["spec"],
    ["artifact", "executed", "places"],
    ["backend", "encode"],
    ["u2net", "pipeline", "drawn", "download", "cudacall", "registry", "metrics"],
    ["checkpoint", "graph", "refine", "ondevice"],
    ["weights", "quant", "finish"],
    ["backends"],
    ["parity"],
    ["bench"],
    ["build", "run", "inspection", "doctor"],
    ["judging", "benching", "video", "ray"],
    ["choosing"],
    ["cli", "testing", "__init__"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHIN = {"bench", "graph", "parity", "quant"}  # folders whose files may import each other
HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "onnxsim", "onnxscript"}
HEAVY |= {"cuda", "tensorrt_rtx", "tensorrt_rtx_bindings"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Names of the u2export modules a file imports, anywhere in it, each as its first part."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "u2export":
            names = [f"u2export.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("u2export.")}
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_the_layers_only(path: Path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for imported in _imports(path):
        if imported == own and own in WITHIN:
            continue
        assert LEVEL[imported] < LEVEL[own], f"{path.name} imports {imported}"


def test_no_module_is_called_utils():
    assert not [p for p in _modules() if p.stem in {"utils", "helpers", "common"}]


@pytest.mark.parametrize("module", ["u2export", "u2export.cli", "u2export.run"])
def test_importing_the_command_line_loads_no_runtime(module: str):
    code = f"import {module}, sys; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_backend_has_a_file_and_an_entry_point():
    files = {p.stem for p in (PACKAGE / "backends").glob("*.py")} - {"__init__"}
    assert set(registry.names()) == files


def test_the_layers_of_this_test_are_those_of_the_architecture_page():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    block = page.split("## 3. Layers")[1].split("```")[1]
    written = [line.split(maxsplit=1)[1] for line in block.strip().splitlines()]
    listed = [", ".join(names) for names in LAYERS]
    assert [line.split("  ")[0].replace("/*", "") for line in written] == listed
