"""Calling work on an NVIDIA GPU from host arrays: pinned buffers, one stream, a captured graph.

Knows nothing of what the work is, so that it can be exercised with any. No PyTorch is needed.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from u2export.backend import Array
from u2export.errors import DependencyError, ExportError

Shape = tuple[int, ...]
_FLOAT_BYTES = 4


class Work(Protocol):
    """Something that computes float32 outputs from one float32 input, on the device."""

    def shapes(self, shape: Shape) -> Sequence[Shape]:
        """Get ready for an input of this shape, and give the outputs' shapes.

        Raises:
            InputError: the work cannot take such an input.
        """

    def bind(self, addresses: Sequence[int]) -> None:
        """Take the device addresses of the input and of every output, in this order."""

    def enqueue(self, stream: Any) -> None:
        """Put the computation on a stream."""


class CudaRuntime:
    """The calls of the CUDA runtime that are needed, each with its status checked."""

    def __init__(self, library: Any) -> None:
        """Wrap `cuda.bindings.runtime`, or what stands in for it."""
        self._library = library

    @classmethod
    def load(cls) -> CudaRuntime:
        """Import the bindings.

        Raises:
            DependencyError: they are not installed.
        """
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise DependencyError("cuda-bindings is missing: pip install cuda-bindings") from error
        return cls(runtime)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime and give what it gives beside its status.

        Raises:
            ExportError: the runtime reports a failure.
        """
        status, *values = getattr(self._library, name)(*arguments)
        if int(status) != 0:
            label = getattr(status, "name", status)
            raise ExportError(f"the GPU failed in {name}: {label} ({int(status)})")
        return values[0] if values else None

    def constant(self, kind: str, name: str) -> Any:
        """A member of one of the runtime's enumerations."""
        return getattr(getattr(self._library, kind), name)


@dataclass
class _Buffer:
    """The same values in pinned host memory and on the device."""

    host: int
    device: int
    nbytes: int

    def view(self, shape: Shape) -> Array:
        count = math.prod(shape)
        memory = (ctypes.c_float * count).from_address(self.host)
        values: Array = np.ctypeslib.as_array(memory).reshape(shape)
        return values


class CudaCall:
    """Runs work on host arrays: copy in, compute, copy out, on one stream of its own.

    The first call of a shape runs plainly; later ones replay all three steps as one captured
    graph, which is dropped when the shape or a buffer's address changes.
    """

    def __init__(self, runtime: CudaRuntime, work: Work, *, graphs: bool) -> None:
        """Make the stream; `graphs` captures the steps, for work that does not do so itself."""
        self._runtime, self._work, self._graphs = runtime, work, graphs
        non_blocking = 1
        self._stream = runtime.call("cudaStreamCreateWithFlags", non_blocking)
        self._buffers: list[_Buffer] = []
        self._shapes: list[Shape] = []
        self._graph: Any = None
        self._warm = False
        self._lock = threading.Lock()

    def __call__(self, x: Array) -> list[Array]:
        """Compute; the outputs belong to the caller.

        Args:
            x: a contiguous float32 array in host memory.

        Raises:
            InputError: the work cannot take such an input.
            ExportError: the GPU reports a failure.
        """
        with self._lock:  # one set of buffers: another thread waits
            self._fit(x.shape)
            self._buffers[0].view(x.shape)[...] = x
            if self._graph is None and self._graphs and self._warm:
                self._graph = self._captured(self._steps)
            if self._graph is None:
                self._steps()
            else:
                self._runtime.call("cudaGraphLaunch", self._graph, self._stream)
            self._runtime.call("cudaStreamSynchronize", self._stream)
            self._warm = True
            outputs = zip(self._buffers[1:], self._shapes[1:], strict=True)
            return [buffer.view(shape).copy() for buffer, shape in outputs]

    def timed(self, x: Array, count: int) -> list[float]:
        """Time the work alone, without the copies, by events on the stream.

        Args:
            x: as for a call.
            count: how many times to run.

        Returns:
            ms each.

        Raises:
            InputError: the work cannot take such an input.
            ExportError: the GPU reports a failure.
        """
        self(x)  # the input is on the device, and everything is warm
        call = self._runtime.call
        with self._lock, ExitStack() as stack:
            launch = partial(self._work.enqueue, self._stream)
            if self._graphs:
                graph = self._captured(launch)
                stack.callback(call, "cudaGraphExecDestroy", graph)
                launch = partial(call, "cudaGraphLaunch", graph, self._stream)
            events = []
            for _ in range(2):
                events.append(call("cudaEventCreate"))
                stack.callback(call, "cudaEventDestroy", events[-1])
            samples = []
            for _ in range(count):
                call("cudaEventRecord", events[0], self._stream)
                launch()
                call("cudaEventRecord", events[1], self._stream)
                call("cudaEventSynchronize", events[1])
                samples.append(float(call("cudaEventElapsedTime", *events)))
            return samples

    def _fit(self, shape: Shape) -> None:
        """Make buffers and work ready for an input of this shape."""
        if self._shapes and self._shapes[0] == shape:
            return
        self._drop_graph()
        self._shapes = []  # should the work refuse, nothing is left half done
        shapes = [shape, *self._work.shapes(shape)]
        sizes = [math.prod(s) * _FLOAT_BYTES for s in shapes]
        if len(self._buffers) != len(sizes) or any(
            buffer.nbytes < size for buffer, size in zip(self._buffers, sizes, strict=True)
        ):
            self._free()
            for size in sizes:
                self._buffers.append(self._allocated(size))
        self._work.bind([buffer.device for buffer in self._buffers])
        self._shapes = shapes

    def _allocated(self, nbytes: int) -> _Buffer:
        host = self._runtime.call("cudaMallocHost", nbytes)
        try:
            device = self._runtime.call("cudaMalloc", nbytes)
        except ExportError:
            self._runtime.call("cudaFreeHost", host)
            raise
        return _Buffer(int(host), int(device), nbytes)

    def _steps(self) -> None:
        to_device = self._runtime.constant("cudaMemcpyKind", "cudaMemcpyHostToDevice")
        to_host = self._runtime.constant("cudaMemcpyKind", "cudaMemcpyDeviceToHost")
        sizes = [math.prod(shape) * _FLOAT_BYTES for shape in self._shapes]
        first = self._buffers[0]
        copy = "cudaMemcpyAsync"
        self._runtime.call(copy, first.device, first.host, sizes[0], to_device, self._stream)
        self._work.enqueue(self._stream)
        for buffer, size in zip(self._buffers[1:], sizes[1:], strict=True):
            self._runtime.call(copy, buffer.host, buffer.device, size, to_host, self._stream)

    def _captured(self, steps: Callable[[], None]) -> Any:
        mode = self._runtime.constant("cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal")
        self._runtime.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            steps()
        finally:
            graph = self._runtime.call("cudaStreamEndCapture", self._stream)
        try:
            return self._runtime.call("cudaGraphInstantiate", graph, 0)
        finally:
            self._runtime.call("cudaGraphDestroy", graph)

    def _drop_graph(self) -> None:
        self._warm = False
        if self._graph is not None:
            self._runtime.call("cudaGraphExecDestroy", self._graph)
            self._graph = None

    def _free(self) -> None:
        for buffer in self._buffers:
            self._runtime.call("cudaFree", buffer.device)
            self._runtime.call("cudaFreeHost", buffer.host)
        self._buffers = []

    def close(self) -> None:
        """Give graph, buffers and stream back."""
        self._drop_graph()
        self._free()
        self._runtime.call("cudaStreamDestroy", self._stream)
