"""Rooms and layers: ARCHITECTURE.md lists them, and imports go down that list only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from u2export.core import registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "u2export"
HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "onnxsim", "onnxscript"}
HEAVY |= {"cuda", "tensorrt_rtx", "tensorrt_rtx_bindings"}


def _layers() -> list[list[str]]:
    """The numbered list of ARCHITECTURE.md, top layer last."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    lines = re.findall(r"^ *(\d+) +([a-z_0-9, ]+)$", text, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, len(lines) + 1))
    return [rooms.strip().split(", ") for _, rooms in lines]


LEVEL = {room: level for level, rooms in enumerate(_layers()) for room in rooms}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported(path: Path) -> set[str]:
    """Dotted names of the u2export modules and names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("u2export.")}


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_the_layers_only(path: Path):
    own = _room(path)
    for name in _imported(path):
        room = name.split(".")[1]
        if room != own:
            assert LEVEL[room] < LEVEL[own], f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_imports_what_another_keeps_private(path: Path):
    private = [name for name in _imported(path) if re.search(r"\._[a-z]", name)]
    assert not private


def _module_of(name: str) -> str | None:
    """The module that a dotted name is, or lies in; None for a package alone."""
    parts = name.split(".")[1:]
    for count in (len(parts), len(parts) - 1):
        path = PACKAGE.joinpath(*parts[:count])
        if count and path.with_suffix(".py").is_file():
            return "/".join(parts[:count])
    return None


def test_no_module_depends_on_itself_through_others():
    needs = {
        str(path.relative_to(PACKAGE).with_suffix("")): {
            module for name in _imported(path) if (module := _module_of(name))
        }
        for path in _modules()
    }
    complete: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in complete:
            for other in sorted(needs.get(module, ())):
                visit(other, (*trail, module))
            complete.add(module)

    for module in needs:
        visit(module, ())


def test_the_page_lists_every_room_and_no_other():
    assert {_room(path) for path in _modules()} == set(LEVEL)


def test_no_module_is_called_utils():
    assert not [p for p in _modules() if p.stem in {"utils", "helpers", "common"}]


@pytest.mark.parametrize("module", ["u2export", "u2export.cli", "u2export.inference.segmenter"])
def test_importing_the_command_line_loads_no_runtime(module: str):
    code = f"import {module}, sys; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_backend_is_a_file_or_a_folder_with_an_entry_point():
    entries = (PACKAGE / "backends").iterdir()
    names = {p.stem for p in entries if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert set(registry.names()) == names - {"__init__"}
