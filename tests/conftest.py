from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from u2export import build, registry, weights
from u2export.artifact import Artifact
from u2export.drawn import draw
from u2export.spec import MODELS, ExportSpec, Precision

SHARED = Path(__file__).resolve().parents[2] / "shared"
DEMO = MODELS["u2netp-demo"]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():
        skip = pytest.mark.skip(reason="needs ../shared (real weights and photographs): not here")
        for item in items:
            if "shared" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_fetched_and_no_home_is_touched(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("U2EXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("U2EXPORT_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo weights as fp32 and fp16 ONNX, and as torch's own artifact."""
    out = tmp_path_factory.mktemp("exported")
    source = weights.find(DEMO)
    for backend in registry.names():
        build.build(backend, ExportSpec(DEMO, 320), source, out)
    build.build("onnx", ExportSpec(DEMO, 320, Precision.FP16), source, out)
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
