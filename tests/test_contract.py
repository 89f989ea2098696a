"""What every backend promises, proved on every backend that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from u2export import registry
from u2export.backend import Backend, Runner
from u2export.drawn import draw
from u2export.errors import ArtifactError, DependencyError, InputError
from u2export.pipeline import preprocess
from u2export.spec import Device, PictureSpec

# In CI a runtime that is missing is a failure: these must be there.
REQUIRED = ("onnx", "torch")
SPEC = PictureSpec()
# onnxruntime and PyTorch choose other algorithms for other batches; measured below 2e-5 on the
# demo weights, five times that is allowed.
BATCH_BOUND = 1e-4


@pytest.fixture(params=registry.names())
def backend(request: pytest.FixtureRequest) -> Backend:
    return registry.load(request.param)


@pytest.fixture
def path(backend: Backend, exported: Path) -> Path:
    return exported / f"u2netp-demo-fp32{backend.suffixes[0]}"


@pytest.fixture
def runner(path: Path):
    with registry.open_runner(registry.open_artifact(path)) as opened:
        yield opened


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return preprocess(draw(1_000_004).picture, SPEC)


def test_all_required_backends_are_installed():
    assert set(REQUIRED) <= set(registry.names())
    for name in REQUIRED:
        registry.require(registry.load(name), export=False)
        registry.require(registry.load(name), export=True)


def test_the_result_is_a_float32_map_in_zero_to_one(runner: Runner, picture):
    y = runner(picture)
    assert (y.shape, y.dtype) == ((1, 1, 320, 320), np.float32)
    assert y.min() >= 0
    assert y.max() <= 1
    assert np.ptp(y) > 0.5


@pytest.mark.parametrize("value", [0.0, -2.1179, 2.64, 1e4, -1e4])
def test_degenerate_inputs_give_finite_values(runner: Runner, value: float):
    y = runner(np.full((1, 3, 320, 320), value, np.float32))
    assert np.isfinite(y).all()


def test_a_result_survives_the_next_call(runner: Runner, picture):
    first = runner(picture)
    kept = first.copy()
    second = runner(picture[..., ::-1])
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    assert first.flags.owndata
    assert first.flags.writeable


def test_the_input_is_left_alone_and_may_be_read_only(runner: Runner, picture):
    x = picture.copy()
    x.flags.writeable = False
    runner(x)
    np.testing.assert_array_equal(x, picture)


def test_the_same_input_gives_the_same_bytes(runner: Runner, picture):
    np.testing.assert_array_equal(runner(picture), runner(picture))


def test_an_input_of_any_memory_layout_gives_the_same(runner: Runner, picture):
    other = np.ascontiguousarray(picture.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(runner(other), runner(picture))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 320, 320), np.float64),
        np.zeros((1, 3, 320, 320), np.uint8),
        np.zeros((1, 3, 320, 321), np.float32),
        np.zeros((1, 3, 288, 288), np.float32),
        np.zeros((1, 1, 320, 320), np.float32),
        np.zeros((3, 320, 320), np.float32),
        np.zeros((0, 3, 320, 320), np.float32),
        [[0.0]],
    ],
    ids=lambda w: f"{getattr(w, 'dtype', 'list')}{getattr(w, 'shape', '')}",
)
def test_a_wrong_input_is_refused_in_one_sentence(runner: Runner, wrong):
    with pytest.raises(InputError, match=r"^the input must be float32 \(.+, 3, 320, 320\), got"):
        runner(wrong)


def test_a_batch_gives_what_its_pictures_give_alone(backend, tmp_path, picture):
    from u2export import build, weights
    from u2export.spec import MODELS, ExportSpec

    model = MODELS["u2netp-demo"]
    batch = None if "batch" in backend.options else 1
    spec = ExportSpec(model, 320, batch=batch)
    artifact = build.build(backend.name, spec, weights.find(model), tmp_path)
    pictures = np.concatenate([picture, picture[..., ::-1], picture[..., ::-1, :]])
    with registry.open_runner(artifact) as runner:
        together = runner(np.ascontiguousarray(pictures))
        alone = np.concatenate([runner(x[None]) for x in pictures])
    np.testing.assert_allclose(together, alone, atol=BATCH_BOUND)


def test_closing_twice_is_allowed_and_a_closed_runner_says_so(path: Path, picture):
    runner = registry.open_runner(registry.open_artifact(path))
    runner.close()
    runner.close()
    with pytest.raises(InputError, match="closed"):
        runner(picture)


def test_two_runners_work_side_by_side(path: Path, picture):
    artifact = registry.open_artifact(path)
    with registry.open_runner(artifact) as one, registry.open_runner(artifact) as two:
        expected = one(picture)
        two(picture[..., ::-1])
        np.testing.assert_array_equal(two(picture), expected)
        one.close()
        np.testing.assert_array_equal(two(picture), expected)


def test_a_device_that_is_not_there_is_refused(backend: Backend, path: Path):
    if Device.CUDA in backend.devices:
        pytest.skip("this backend can run on CUDA; tests marked gpu cover it")
    with pytest.raises(DependencyError, match="not on cuda"):
        registry.open_runner(registry.open_artifact(path), Device.CUDA)


def test_a_damaged_file_is_refused(backend: Backend, tmp_path: Path):
    path = tmp_path / f"damaged{backend.suffixes[0]}"
    path.write_bytes(b"no model at all")
    with pytest.raises(ArtifactError):
        _opened(path)


def _opened(path: Path) -> Runner:
    return registry.open_runner(registry.open_artifact(path, "u2netp"))


def test_one_thread_is_one_thread(path: Path, picture):
    """Process time stays at wall time: nothing else computes."""
    with registry.open_runner(registry.open_artifact(path), threads=1) as runner:
        runner(picture)
        process = psutil.Process()
        import time

        used, begun = process.cpu_times(), time.perf_counter()
        for _ in range(3):
            runner(picture)
        wall = time.perf_counter() - begun
        now = process.cpu_times()
    assert now.user + now.system - used.user - used.system < 1.25 * wall


def test_memory_does_not_grow_over_two_hundred_calls(backend: Backend, tmp_path: Path):
    from u2export import build, weights
    from u2export.spec import MODELS, ExportSpec

    size = 64
    model = MODELS["u2netp-demo"]
    spec = ExportSpec(model, size if "size" in backend.options else 320)
    artifact = build.build(backend.name, spec, weights.find(model), tmp_path)
    words = [sys.executable, str(Path(__file__).with_name("grows.py")), str(artifact.path)]
    done = subprocess.run(
        [*words, str(size)], capture_output=True, text=True, check=True, timeout=200
    )
    # A leak of one output map a call would be 3.3 MB, of one input 9.8 MB.
    assert int(done.stdout) < 2 * 2**20
