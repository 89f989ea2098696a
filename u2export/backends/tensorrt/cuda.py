"""Host array to GPU to host array: pinned buffers, one stream, a captured graph.

This module knows nothing of the computation, so tests can use any. It needs no PyTorch.
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

from u2export.core.arrays import Array
from u2export.errors import DependencyError, ExportError

Shape = tuple[int, ...]
_FLOAT_BYTES = 4
_STREAM_NON_BLOCKING = 1  # cudaStreamNonBlocking


class GpuComputation(Protocol):
    """A computation on the device: float32 outputs from one float32 input."""

    def prepare(self, shape: Shape) -> Sequence[Shape]:
        """Prepare for an input of this shape, and give the shapes of the outputs.

        Raises:
            InputError: the computation cannot take such an input.
        """

    def bind(self, addresses: Sequence[int]) -> None:
        """Set the device addresses of the input and of every output, in this order."""

    def enqueue(self, stream: Any) -> None:
        """Put the computation on a stream."""


class CudaCall:
    """A computation on host arrays: copy in, compute, copy out, on one stream of its own.

    The first call of a shape runs step by step. Later calls replay all three steps as one captured
    graph. The graph is dropped when the shape or the address of a buffer changes.
    """

    def __init__(self, runtime: CudaRuntime, computation: GpuComputation, *, graphs: bool) -> None:
        """Make the stream.

        Args:
            runtime: the CUDA runtime.
            computation: runs between the copies.
            graphs: capture the steps; for a computation that does not capture itself.
        """
        self._runtime, self._computation, self._graphs = runtime, computation, graphs
        self._stream = runtime.call("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING)
        self._buffers: list[_Buffer] = []  # of the input and of every output
        self._shapes: list[Shape] = []  # of the same
        self._graph: Any = None
        self._warm = False  # a call of this shape has run
        self._lock = threading.Lock()

    def __call__(self, x: Array) -> list[Array]:
        """Compute; the outputs belong to the caller.

        Args:
            x: a contiguous float32 array in host memory.

        Raises:
            InputError: the computation cannot take such an input.
            ExportError: the GPU reports a failure.
        """
        with self._lock:  # there is one set of buffers, so other threads wait
            self._prepare(x.shape)
            self._buffers[0].view(x.shape)[...] = x
            if self._graph is None and self._graphs and self._warm:
                self._graph = self._capture(self._enqueue_steps)
            if self._graph is None:
                self._enqueue_steps()
            else:
                self._runtime.call("cudaGraphLaunch", self._graph, self._stream)
            self._runtime.call("cudaStreamSynchronize", self._stream)
            self._warm = True
            outputs = zip(self._buffers[1:], self._shapes[1:], strict=True)
            return [buffer.view(shape).copy() for buffer, shape in outputs]

    def time_on_device(self, x: Array, count: int) -> list[float]:
        """Time the computation alone, without the copies, by events on the stream.

        Args:
            x: as for a call.
            count: how many times to run.

        Returns:
            ms each.

        Raises:
            InputError: the computation cannot take such an input.
            ExportError: the GPU reports a failure.
        """
        self(x)  # warm up, and leave the input on the device
        call = self._runtime.call
        with self._lock, ExitStack() as stack:
            launch = partial(self._computation.enqueue, self._stream)
            if self._graphs:
                graph = self._capture(launch)
                stack.callback(call, "cudaGraphExecDestroy", graph)
                launch = partial(call, "cudaGraphLaunch", graph, self._stream)
            events = []
            for _ in range(2):
                events.append(call("cudaEventCreate"))
                stack.callback(call, "cudaEventDestroy", events[-1])
            begin, end = events
            samples = []
            for _ in range(count):
                call("cudaEventRecord", begin, self._stream)
                launch()
                call("cudaEventRecord", end, self._stream)
                call("cudaEventSynchronize", end)
                samples.append(float(call("cudaEventElapsedTime", begin, end)))
            return samples

    def close(self) -> None:
        """Release graph, buffers and stream."""
        self._drop_graph()
        self._free_buffers()
        self._runtime.call("cudaStreamDestroy", self._stream)

    def _prepare(self, shape: Shape) -> None:
        """Prepare buffers and computation for an input of this shape."""
        if self._shapes and self._shapes[0] == shape:
            return
        self._drop_graph()
        self._shapes = []  # stays empty if the computation refuses the shape
        shapes = [shape, *self._computation.prepare(shape)]
        self._provide_buffers([math.prod(shape) * _FLOAT_BYTES for shape in shapes])
        self._computation.bind([buffer.device for buffer in self._buffers])
        self._shapes = shapes

    def _provide_buffers(self, sizes: list[int]) -> None:
        """Allocate buffers of these sizes in bytes, unless the present ones are large enough."""
        if len(self._buffers) == len(sizes) and all(
            buffer.nbytes >= size for buffer, size in zip(self._buffers, sizes, strict=True)
        ):
            return
        self._free_buffers()
        for size in sizes:
            self._buffers.append(self._allocate_buffer(size))

    def _allocate_buffer(self, nbytes: int) -> _Buffer:
        host = self._runtime.call("cudaMallocHost", nbytes)
        try:
            device = self._runtime.call("cudaMalloc", nbytes)
        except ExportError:
            self._runtime.call("cudaFreeHost", host)
            raise
        return _Buffer(int(host), int(device), nbytes)

    def _free_buffers(self) -> None:
        for buffer in self._buffers:
            self._runtime.call("cudaFree", buffer.device)
            self._runtime.call("cudaFreeHost", buffer.host)
        self._buffers = []

    def _enqueue_steps(self) -> None:
        """Put copy in, computation and copy out on the stream."""
        to_device = self._runtime.enum_member("cudaMemcpyKind", "cudaMemcpyHostToDevice")
        to_host = self._runtime.enum_member("cudaMemcpyKind", "cudaMemcpyDeviceToHost")
        sizes = [math.prod(shape) * _FLOAT_BYTES for shape in self._shapes]
        copy = partial(self._runtime.call, "cudaMemcpyAsync")
        input_buffer, *output_buffers = self._buffers
        copy(input_buffer.device, input_buffer.host, sizes[0], to_device, self._stream)
        self._computation.enqueue(self._stream)
        for buffer, size in zip(output_buffers, sizes[1:], strict=True):
            copy(buffer.host, buffer.device, size, to_host, self._stream)

    def _capture(self, enqueue: Callable[[], None]) -> Any:
        """Capture what a function puts on the stream, as an executable graph."""
        mode = self._runtime.enum_member(
            "cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal"
        )
        self._runtime.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
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


class CudaRuntime:
    """The CUDA runtime, with the status of every call checked."""

    def __init__(self, library: Any) -> None:
        """Wrap `cuda.bindings.runtime`, or a substitute."""
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
        """Call a function of the runtime, and give its result without the status.

        Raises:
            ExportError: the status is a failure.
        """
        status, *values = getattr(self._library, name)(*arguments)
        if int(status) != 0:
            label = getattr(status, "name", status)
            raise ExportError(f"the GPU failed in {name}: {label} ({int(status)})")
        return values[0] if values else None

    def enum_member(self, enum_name: str, name: str) -> Any:
        """Give a member of one of the runtime's enumerations."""
        return getattr(getattr(self._library, enum_name), name)


@dataclass
class _Buffer:
    """The same values in pinned host memory and on the device.

    Attributes:
        host: address in pinned host memory.
        device: address on the device.
        nbytes: size of each.
    """

    host: int
    device: int
    nbytes: int

    def view(self, shape: Shape) -> Array:
        """View the host memory as a float32 array."""
        count = math.prod(shape)
        memory = (ctypes.c_float * count).from_address(self.host)
        values: Array = np.ctypeslib.as_array(memory).reshape(shape)
        return values
