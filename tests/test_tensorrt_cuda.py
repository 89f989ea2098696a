"""Calling work on a GPU, against an acted CUDA runtime that knows which memory still exists."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from fakes import FakeCuda

from u2export.backends.tensorrt.cuda import CudaCall, CudaRuntime
from u2export.core.models import MODELS
from u2export.errors import ExportError, InputError
from u2export.network import checkpoint, weights


class Doubling:
    """Gives twice the input, and its negative; refuses more than four rows."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self._count = cuda, 0
        self._addresses: list[int] = []

    def prepare(self, shape):
        if shape[0] > 4:
            raise InputError(f"{shape[0]} rows are too many")
        self._count = int(np.prod(shape))
        return [shape, shape]

    def bind(self, addresses):
        self._addresses = list(addresses)

    def enqueue(self, stream):
        source, *targets = self._addresses
        count = self._count

        def step() -> int:
            if not all(self._cuda.live("device", a, 4 * count) for a in (source, *targets)):
                return 1
            x = np.ctypeslib.as_array((ctypes.c_float * count).from_address(source))
            for address, factor in zip(targets, (2, -1), strict=True):
                y = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
                y[...] = factor * x
            self._cuda.clock += 3
            return 0

        self._cuda.submit(stream, step)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


def _call(cuda: FakeCuda, *, graphs: bool = True) -> CudaCall:
    return CudaCall(CudaRuntime(cuda), Doubling(cuda), graphs=graphs)


def _rows(count: int, start: float = 0) -> np.ndarray:
    return np.arange(start, start + count * 3, dtype=np.float32).reshape(count, 3)


def test_results_are_computed_and_owned(cuda: FakeCuda):
    call = _call(cuda)
    first, negative = call(_rows(2))
    call(_rows(2, 100))
    np.testing.assert_array_equal(first, [[0, 2, 4], [6, 8, 10]])
    np.testing.assert_array_equal(negative, [[0, -1, -2], [-3, -4, -5]])
    call.close()


def test_the_second_call_of_a_shape_is_captured_and_later_ones_replay_it(cuda: FakeCuda):
    call = _call(cuda)
    for number in range(4):
        np.testing.assert_array_equal(call(_rows(1, number))[0], 2 * _rows(1, number))
    assert cuda.launches == 3
    call.close()


def test_without_graphs_nothing_is_captured(cuda: FakeCuda):
    call = _call(cuda, graphs=False)
    for _ in range(3):
        call(_rows(1))
    assert cuda.launches == 0
    call.close()


def test_a_graph_does_not_outlive_its_buffers(cuda: FakeCuda):
    call = _call(cuda)
    for count in (1, 1, 4, 4, 2, 2, 1, 1):
        np.testing.assert_array_equal(call(_rows(count, count))[0], 2 * _rows(count, count))
    call.close()


def test_a_refused_shape_leaves_the_call_usable(cuda: FakeCuda):
    call = _call(cuda)
    call(_rows(2))
    with pytest.raises(InputError, match="5 rows are too many"):
        call(_rows(5))
    np.testing.assert_array_equal(call(_rows(2, 7))[0], 2 * _rows(2, 7))
    call.close()


def test_full_memory_is_an_error_and_nothing_leaks(cuda: FakeCuda):
    call = _call(cuda)
    call(_rows(1))
    cuda.fail.add("cudaMalloc")
    with pytest.raises(ExportError, match=r"the GPU failed in cudaMalloc: 2 \(2\)"):
        call(_rows(4))
    cuda.fail.clear()
    np.testing.assert_array_equal(call(_rows(4))[0], 2 * _rows(4))
    call.close()
    assert cuda.held == 0


def test_closing_gives_everything_back(cuda: FakeCuda):
    call = _call(cuda)
    for count in (1, 1, 3, 3, 3):
        call(_rows(count))
    assert cuda.held > 0
    call.close()
    assert cuda.held == 0


@pytest.mark.parametrize("graphs", [True, False])
def test_events_time_the_work_alone_and_nothing_is_left_behind(cuda: FakeCuda, graphs: bool):
    call = _call(cuda, graphs=graphs)
    call(_rows(2))
    launched = cuda.launches
    assert call.time_on_device(_rows(3), 4) == [3, 3, 3, 3]  # a copy of the acted GPU takes 10 ms
    assert cuda.launches - launched == (4 if graphs else 0)
    np.testing.assert_array_equal(call(_rows(3, 7))[0], 2 * _rows(3, 7))
    call.close()
    assert cuda.held == 0


def test_a_gpu_that_fails_while_it_is_timed_leaves_no_event(cuda: FakeCuda, monkeypatch):
    call = _call(cuda)
    monkeypatch.setattr(cuda, "cudaEventElapsedTime", lambda begin, end: (700, 0.0))
    with pytest.raises(ExportError, match="cudaEventElapsedTime"):
        call.time_on_device(_rows(1), 2)
    call.close()
    assert cuda.held == 0


# --- on a GPU, with a PyTorch module as the work


class _Memory:
    """Device memory that somebody else owns, as PyTorch takes it."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (address, False), "version": 3,
        }  # fmt: skip


class _Network:
    """The demo network as work: reads and writes where it is told, on the stream it is told."""

    def __init__(self) -> None:
        self.network = checkpoint.load_network(weights.find(MODELS["u2netp-demo"]), print).cuda()
        self._shape: tuple[int, ...] = ()
        self._ends: list[torch.Tensor] = []

    def prepare(self, shape):
        self._shape = shape
        return [(shape[0], 1, *shape[2:])]

    def bind(self, addresses):
        shapes = [self._shape, *self.prepare(self._shape)]
        ends = [_Memory(*end) for end in zip(addresses, shapes, strict=True)]
        self._ends = [torch.as_tensor(end, device="cuda") for end in ends]

    def enqueue(self, stream):
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(int(stream))):
            self._ends[1].copy_(self.network(self._ends[0]))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_a_module_on_a_gpu_gives_what_it_gives_by_itself(graphs: bool, monkeypatch):
    pytest.importorskip("cuda.bindings")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch cannot use the GPU")
    for kind in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        monkeypatch.setattr(kind, "fp32_precision", "ieee")
    work = _Network()
    call = CudaCall(CudaRuntime.load(), work, graphs=graphs)
    rng = np.random.default_rng(0)
    try:
        # a graph is captured at the second call of a shape, and dropped when the shape changes
        for count in (1, 1, 1, 2, 2, 2, 1, 1):
            x = rng.standard_normal((count, 3, 64, 64)).astype(np.float32)
            with torch.inference_mode():
                expected = work.network(torch.tensor(x, device="cuda")).cpu().numpy()
            (found,) = call(x)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        assert all(ms > 0 for ms in call.time_on_device(x, 5))
    finally:
        call.close()
