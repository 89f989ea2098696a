from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import openvino
import pytest
import traces
from filelock import FileLock

from u2export.core import registry
from u2export.core.artifact import Artifact
from u2export.core.enums import Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.export.build import build_artifact
from u2export.images.synthetic import draw_image
from u2export.network import weights
from u2export.system import hardware

SHARED = Path(__file__).resolve().parents[2] / "shared"
DEMO = MODELS["u2netp-demo"]
SMALL = 64  # pixels
TRACED = Path(__file__).parent / "traced"
ALL_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
POSIX = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no such limits or terminals"
)
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend", action="append", help="test the promises of this backend only; repeatable"
    )
    parser.addoption("--traces", type=Path, help="folder of networks that were traced already")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes a processor of its own.

    Runtimes start a thread for each processor there is, and threads that wait for each other on
    too few of them take several times as long.
    """
    worker = getattr(config, "workerinput", None)
    if worker and hasattr(os, "sched_setaffinity"):
        # OpenVINO counts processors once: all of them, for the tests that use `all_cpus`
        openvino.Core().get_property("CPU", "OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        mine = sorted(ALL_CPUS)[int(worker["workerid"].removeprefix("gw")) % len(ALL_CPUS)]
        os.sched_setaffinity(0, {mine})


def _backends(config: pytest.Config) -> list[str]:
    return config.getoption("--backend") or registry.names()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _backends(metafunc.config), indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not SHARED.is_dir():
        missing["shared"] = "needs ../shared (real weights and photographs): not here"
    if no_gpu := hardware.query_cuda().reason:
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


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder for what all of a run's test processes use; pytest-xdist starts several."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if hasattr(pytestconfig, "workerinput") else base) / "common"
    place.mkdir(exist_ok=True)
    return place


def _made_once(place: Path, make: Callable[[Path], None]) -> Path:
    """Let the first process that comes make a folder; others wait for it."""
    done = place / "done"
    with FileLock(f"{place}.lock"):
        if not done.exists():
            place.mkdir(exist_ok=True)
            make(place)
            done.touch()
    return place


@pytest.fixture(scope="session")
def folder_of_traces(common: Path, pytestconfig: pytest.Config) -> Path:
    """A folder for what was traced."""
    given: Path | None = pytestconfig.getoption("--traces")
    place = given or common / "traces"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(autouse=True, scope="session")
def _a_network_is_traced_once(folder_of_traces: Path):
    from u2export.onnx_graph import trace

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace_network", traces.once(trace.trace_network, folder_of_traces))
        yield


@contextmanager
def every_cpu() -> Iterator[None]:
    """Let this process use every processor, where the system has such a choice."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CPUS)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def all_cpus():
    """Let this process use every processor for a test."""
    with every_cpu():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def exported(common: Path, pytestconfig: pytest.Config) -> Path:
    """A folder with the demo weights as every backend exports them, fp32 and fp16."""

    def make(out: Path) -> None:
        source = weights.find(DEMO)
        for backend in _backends(pytestconfig):
            for precision in (Precision.FP32, Precision.FP16):
                if precision in registry.load(backend).precisions:
                    build_artifact(backend, ExportSpec(DEMO, 320, precision), source, out)

    return _made_once(common / "-".join(["exported", *_backends(pytestconfig)]), make)


@pytest.fixture(scope="session")
def small(common: Path, pytestconfig: pytest.Config) -> Path:
    """A folder with the demo weights for 64 pixels and any batch, as every backend exports them."""

    def make(out: Path) -> None:
        source = weights.find(DEMO)
        for name in _backends(pytestconfig):
            options = registry.load(name).export_options
            free = None if "batch" in options else 1
            size = SMALL if "size" in options else 320
            build_artifact(name, ExportSpec(DEMO, size, batch=free), source, out)

    return _made_once(common / "-".join(["small", *_backends(pytestconfig)]), make)


@pytest.fixture(scope="session")
def quick(small: Path) -> Path:
    """An ONNX file of 64 pixels that takes any number of pictures."""
    return next(small.glob("*.onnx"))


@pytest.fixture(scope="session")
def fp32(exported: Path) -> Artifact:
    return registry.open_artifact(exported / "u2netp-demo-fp32.onnx")


@pytest.fixture(scope="session")
def picture_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "drawn.png"
    draw_image(1_000_310, (200, 150)).picture.save(path)
    return path


@pytest.fixture
def command(tmp_path: Path, folder_of_traces: Path) -> Command:
    """Run the command line in an empty folder, as a user would; no network, a cache of its own.

    A network that was traced before is not traced again, unless that is asked for.
    """

    def run(
        *words: object,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        retraced: bool = False,
    ):
        given = env or {}
        if not retraced:
            others = given.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
            paths = [str(TRACED), *filter(None, [others])]
            given = {
                **given,
                "PYTHONPATH": os.pathsep.join(paths),
                "U2EXPORT_TEST_TRACES": str(folder_of_traces),
            }
        return subprocess.run(
            [sys.executable, "-m", "u2export", *map(str, words)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=280,
            cwd=cwd or tmp_path,
            env={**os.environ, **given},
            check=False,
        )

    return run
