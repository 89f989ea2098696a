"""A GPU and TensorRT's runtime, acted out on a CPU.

Device memory is host memory that knows whether it still exists; a stream runs what it is given at
once, or notes it while it is captured; an engine runs the ONNX file it was built from. That finds
graphs that outlive their buffers, leaks, refused shapes and wrong orders. It says nothing about a
real GPU's numbers or speed.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from u2export.backends.tensorrt import flavours
from u2export.backends.tensorrt.cuda import CudaRuntime
from u2export.backends.tensorrt.flavours import RTX, load_library
from u2export.system import hardware

GPU = hardware.Gpu("Acted GPU", (8, 6))
INVALID_VALUE, CAPTURE_FAULT = 1, 900


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class FakeCuda:
    """`cuda.bindings.runtime` with what the runner calls."""

    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode

    def __init__(self) -> None:
        self.memory: dict[int, tuple[str, Any]] = {}
        self.capturing: dict[int, list[Callable[[], int]]] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], int]]] = {}
        self.launches = 0
        self.clock = 0.0  # ms that the acted GPU has worked
        self.events: dict[int, float] = {}
        self.fail: set[str] = set()
        self._next = 1000

    @property
    def held(self) -> int:
        return len(self.memory) + len(self.streams) + len(self.graphs) + len(self.events)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _allocate(self, kind: str, nbytes: int) -> tuple[int, int]:
        block = (ctypes.c_char * nbytes)()
        address = ctypes.addressof(block)
        self.memory[address] = (kind, block)
        return 0, address

    def live(self, kind: str, address: int, nbytes: int) -> bool:
        found = self.memory.get(address)
        return found is not None and found[0] == kind and ctypes.sizeof(found[1]) >= nbytes

    def submit(self, stream: int, step: Callable[[], int]) -> int:
        if stream in self.capturing:
            self.capturing[stream].append(step)
            return 0
        return step()

    def cudaSetDevice(self, index: int) -> tuple[int]:
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        stream = self._number()
        self.streams.add(stream)
        return 0, stream

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams.remove(stream)
        return (0,)

    def cudaMalloc(self, nbytes: int) -> tuple[int, ...]:
        return (2, 0) if "cudaMalloc" in self.fail else self._allocate("device", nbytes)

    def cudaMallocHost(self, nbytes: int) -> tuple[int, int]:
        return self._allocate("host", nbytes)

    def cudaFree(self, address: int) -> tuple[int]:
        return (0 if self.memory.pop(address, None) else INVALID_VALUE,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to: int, source: int, n: int, kind: int, stream: int) -> tuple[int]:
        kinds = ("device", "host") if kind == 1 else ("host", "device")

        def step() -> int:
            if not (self.live(kinds[0], to, n) and self.live(kinds[1], source, n)):
                return INVALID_VALUE
            ctypes.memmove(to, source, n)
            self.clock += 10
            return 0

        return (self.submit(stream, step),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (CAPTURE_FAULT if stream in self.capturing else 0,)

    def cudaEventCreate(self) -> tuple[int, int]:
        event = self._number()
        self.events[event] = -1.0
        return 0, event

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.events[event] = self.clock
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        return (0 if self.events[event] >= 0 else INVALID_VALUE,)

    def cudaEventElapsedTime(self, begin: int, end: int) -> tuple[int, float]:
        return 0, self.events[end] - self.events[begin]

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        del self.events[event]
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.capturing[stream] = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:
        graph = self._number()
        self.graphs[graph] = self.capturing.pop(stream)
        return 0, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        ready = self._number()
        self.graphs[ready] = self.graphs[graph]
        return 0, ready

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:
        del self.graphs[graph]
        return (0,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        self.launches += 1
        return (next((status for step in self.graphs[graph] if (status := step())), 0),)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._shape = engine, engine.input_shape
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.profile
        fits = low <= shape[0] <= high and shape[1:] == self._engine.input_shape[1:]
        if fits:
            self._shape = shape
        return fits

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == self._engine.names[0]:
            return self._shape
        return (self._shape[0], *self._engine.inner[name])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        addresses, shape = dict(self._addresses), self._shape
        cuda = self._engine.cuda

        def step() -> int:
            first, *outputs = self._engine.names
            count = int(np.prod(shape))
            if not cuda.live("device", addresses[first], 4 * count):
                return INVALID_VALUE
            source = (ctypes.c_float * count).from_address(addresses[first])
            x = np.ctypeslib.as_array(source).reshape(shape)
            for name, y in zip(outputs, self._engine.session.run(outputs, {first: x}), strict=True):
                if not cuda.live("device", addresses[name], y.nbytes):
                    return INVALID_VALUE
                ctypes.memmove(addresses[name], np.ascontiguousarray(y).ctypes.data, y.nbytes)
            return 0

        return cuda.submit(stream, step) == 0


class FakeRuntimeCache:
    def __init__(self) -> None:
        self.content = b"compiled kernels"

    def deserialize(self, blob: bytes) -> bool:
        return blob == self.content

    def serialize(self) -> bytes:
        return self.content


class FakeEngine:
    def __init__(self, cuda: FakeCuda, path: Path, profile: tuple[int, int, int]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.cuda, self.profile = cuda, profile
        shape = self.session.get_inputs()[0].shape
        self.dynamic = not isinstance(shape[0], int)
        self.input_shape = (-1 if self.dynamic else shape[0], *shape[1:])
        self.names = [
            self.session.get_inputs()[0].name,
            *(output.name for output in self.session.get_outputs()),
        ]
        self.inner = {output.name: output.shape[1:] for output in self.session.get_outputs()}
        self.layers = _told(path)
        self.configs: list[SimpleNamespace] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == self.names[0] else "OUTPUT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.input_shape

    def get_tensor_dtype(self, name: str) -> str:
        return "FLOAT"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(count, *self.input_shape[1:]) for count in self.profile]

    def create_runtime_config(self) -> SimpleNamespace:
        config = SimpleNamespace(
            create_runtime_cache=FakeRuntimeCache,
            set_runtime_cache=lambda cache: True,
            cuda_graph_strategy=None,
        )
        self.configs.append(config)
        return config

    def create_execution_context(self, config: object = None) -> FakeContext:
        return FakeContext(self)

    def create_engine_inspector(self) -> SimpleNamespace:
        text = json.dumps({"Layers": self.layers})
        return SimpleNamespace(execution_context=None, get_engine_information=lambda form: text)


def _told(path: Path) -> list[dict[str, Any]]:
    """What the engine inspector would tell of an engine built from this ONNX file."""
    model = onnx.load(path)
    half = any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer)
    kind = "Half" if half else "Float"
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    return [
        {
            "Name": f"__myl_{node.op_type}_myl0_{place}",
            "LayerType": "kgen",
            "Inputs": [_tensor(node.input[0], kind, ends)],
            "Outputs": [_tensor(node.output[0], kind, ends)],
            "TacticName": f"__myl_{node.op_type}",
            "StreamId": 0,
            "Metadata": f"[ONNX Layer: {node.name}]",
        }
        for place, node in enumerate(model.graph.node)
    ] + [{"Name": "__mye1_wait", "LayerType": "wait", "Inputs": [], "Outputs": []}]


def _tensor(name: str, kind: str, ends: set[str]) -> dict[str, Any]:
    """A tensor in the words of RTX 1.7; the engine's ends are float32."""
    return {
        "Name": name,
        "Dimensions": [1, 1, 10, 10],
        "Datatype": "Float" if name in ends else kind,
        "Format": "(Linear) Row major linear format",
    }


class FakeTensorrt:
    """A flavour's module: what running needs of it."""

    TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    LayerInformationFormat = SimpleNamespace(JSON="JSON")
    DataType = SimpleNamespace(FLOAT="FLOAT")
    ComputeCapability = SimpleNamespace(SM80=80, SM86=86, SM89=89)
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE_GRAPH_CAPTURE")

    def __init__(self, cuda: FakeCuda, version: str) -> None:
        self.cuda, self.__version__ = cuda, version
        self.sources: dict[str, tuple[Path, tuple[int, int, int]]] = {}
        self.engines: list[FakeEngine] = []

    def learn(self, folder: Path) -> None:
        """Know the engines of a folder by the ONNX files they were built from."""
        for manifest in folder.rglob("*.engine.json"):
            engine = manifest.with_suffix("")
            build = json.loads(manifest.read_text())["facts"]["build"]
            low, typical, high = map(int, build.get("profile", "1:1:1").split(":"))
            digest = hashlib.sha256(engine.read_bytes()).hexdigest()
            self.sources[digest] = (engine.with_suffix(".onnx"), (low, typical, high))

    def Runtime(self, logger: Any) -> SimpleNamespace:
        def deserialize(blob: bytes) -> FakeEngine | None:
            found = self.sources.get(hashlib.sha256(blob).hexdigest())
            if found is None:
                logger.lines.append("this is no engine")
                return None
            self.engines.append(FakeEngine(self.cuda, *found))
            return self.engines[-1]

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def act(patch: pytest.MonkeyPatch, folder: Path) -> tuple[FakeCuda, FakeTensorrt]:
    """Let TensorRT's runner meet an acted GPU that knows the engines of a folder."""
    real, _ = load_library(RTX)
    cuda = FakeCuda()
    library = FakeTensorrt(cuda, real.__version__)
    library.learn(folder)
    logger = SimpleNamespace(lines=[])
    patch.setattr(flavours, "load_library", lambda flavour: (library, logger))
    patch.setattr(hardware, "query_cuda", lambda: hardware.CudaDriver((GPU,), "12.8"))
    patch.setattr(CudaRuntime, "load", classmethod(lambda cls: cls(cuda)))
    return cuda, library
