from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from u2export import build, machine, registry, weights
from u2export.artifact import Artifact
from u2export.drawn import draw
from u2export.spec import MODELS, ExportSpec, Precision

SHARED = Path(__file__).resolve().parents[2] / "shared"
DEMO = MODELS["u2netp-demo"]
SMALL = 64  # pixels
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend", action="append", help="test the promises of this backend only; repeatable"
    )


def _backends(config: pytest.Config) -> list[str]:
    return config.getoption("--backend") or registry.names()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _backends(metafunc.config), indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not SHARED.is_dir():
        missing["shared"] = "needs ../shared (real weights and photographs): not here"
    if no_gpu := machine.cuda().reason:
        missing["gpu"] = f"needs an NVIDIA GPU: {no_gpu}"
    for item in items:
        for marker, reason in missing.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_fetched_and_no_home_is_touched(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("U2EXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("U2EXPORT_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def _a_network_is_traced_once():
    """Tracing takes 5 to 10 s, and a network that was traced gives the same graph again.

    That the same export in two processes gives the same bytes is tested by the command line.
    """
    from u2export.graph import trace

    real, known = trace.trace, {}

    def traced(network: Any, size: int, opset: int) -> onnx.ModelProto:
        digest = hashlib.sha256()
        for name, values in network.state_dict().items():
            digest.update(name.encode() + values.contiguous().numpy().tobytes())
        key = (digest.hexdigest(), size, opset, network.all_outputs)
        if key not in known:
            known[key] = real(network, size, opset)
        model = onnx.ModelProto()
        model.CopyFrom(known[key])
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace", traced)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder with the demo weights as every backend exports them, fp32 and fp16."""
    out = tmp_path_factory.mktemp("exported")
    source = weights.find(DEMO)
    for backend in _backends(pytestconfig):
        for precision in (Precision.FP32, Precision.FP16):
            if precision in registry.load(backend).precisions:
                build.build(backend, ExportSpec(DEMO, 320, precision), source, out)
    return out


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder with the demo weights for 64 pixels and any batch, as every backend exports them."""
    out = tmp_path_factory.mktemp("small")
    source = weights.find(DEMO)
    for name in _backends(pytestconfig):
        options = registry.load(name).options
        free = None if "batch" in options else 1
        size = SMALL if "size" in options else 320
        build.build(name, ExportSpec(DEMO, size, batch=free), source, out)
    return out


@pytest.fixture(scope="session")
def fp32(exported: Path) -> Artifact:
    return registry.open_artifact(exported / "u2netp-demo-fp32.onnx")


@pytest.fixture(scope="session")
def picture_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "drawn.png"
    draw(1_000_310, (200, 150)).picture.save(path)
    return path


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run the command line in an empty folder, as a user would; no network, a cache of its own."""

    def run(*words: object, env: dict[str, str] | None = None, cwd: Path | None = None):
        return subprocess.run(
            [sys.executable, "-m", "u2export", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})},
            check=False,
        )

    return run
