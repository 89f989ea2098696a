"""An engine on a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from u2export.backends.tensorrt import flavours
from u2export.backends.tensorrt.compatibility import check_version, unsupported_reason
from u2export.backends.tensorrt.cuda import CudaCall, CudaRuntime, Shape
from u2export.backends.tensorrt.flavours import FULL, MODULES, choose_flavour, collect_errors
from u2export.backends.tensorrt.inspector import parse_layer
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.backend import Runner
from u2export.core.execution import Execution
from u2export.core.requests import RunSpec
from u2export.errors import ArtifactError, ExportError, InputError
from u2export.system.files import write_bytes
from u2export.system.progress import say


class TensorrtRunner(Runner):
    """An engine on a GPU."""

    def __init__(self, artifact: Artifact, run_spec: RunSpec) -> None:
        """Load the engine.

        Raises:
            ArtifactError: it was built by another version or for another GPU, or is damaged.
            DependencyError: its flavour of TensorRT is not installed.
            ExportError: TensorRT cannot start it.
        """
        self._run_spec = run_spec
        self._stored_precision, self._int8_share = artifact.stored_precision, artifact.int8_share
        self._flavour = choose_flavour(artifact.facts.build.get("flavour"))
        self._library, self._logger = flavours.load_library(self._flavour)
        check_version(artifact, self._flavour, self._library.__version__)
        if reason := unsupported_reason(artifact, run_spec):
            raise ArtifactError(f"{artifact.path} cannot run here: {reason}; export it again")
        runtime = CudaRuntime.load()
        runtime.call("cudaSetDevice", 0)
        self._logger.lines.clear()
        self._runtime = self._library.Runtime(self._logger)
        self._engine = self._load_engine(artifact.path)
        self._kernel_cache: _KernelCache | None = None
        self._context = self._create_context(artifact.path)
        self._computation = _EngineComputation(self._library, self._engine, self._context)
        self._check_input(artifact)
        batch = self._computation.batch
        super().__init__(
            artifact.facts.size, None if batch == -1 else batch, self._computation.batch_limits
        )
        # RTX captures its own graphs
        self._call = CudaCall(runtime, self._computation, graphs=self._flavour == FULL)

    def _load_engine(self, path: Path) -> Any:
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ArtifactError(
                f"TensorRT {self._library.__version__} refuses {path}: "
                f"{collect_errors(self._logger)}"
            )
        return engine

    def _create_context(self, path: Path) -> Any:
        if self._flavour == FULL:
            context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._kernel_cache = _KernelCache(
                path.with_name(path.name + ".cache"), config.create_runtime_cache()
            )
            config.set_runtime_cache(self._kernel_cache.runtime_cache)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise ExportError(f"TensorRT cannot start {path}: {collect_errors(self._logger)}")
        return context

    def _check_input(self, artifact: Artifact) -> None:
        """Refuse an engine that does not take float32 (N,3,size,size)."""
        size, computation = artifact.facts.size, self._computation
        if computation.input_shape[1:] != (3, size, size):
            raise ArtifactError(
                f"{artifact.path} takes {computation.input_shape}, not pictures of "
                f"3x{size}x{size}: it is not a {artifact.facts.model}"
            )
        if computation.input_type != self._library.DataType.FLOAT:
            raise ArtifactError(
                f"{artifact.path} takes {computation.input_type}; it must take float32"
            )

    def _infer(self, x: Array) -> Array:
        return self._call(x)[0]

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        return tuple(self._call(x))

    def infer_by_name(self, x: Array) -> dict[str, Array]:
        """Compute every output of an engine, whatever its shape.

        Args:
            x: as for a call.

        Returns:
            The outputs by their names in the engine.
        """
        self._check(x)
        outputs = self._call(np.ascontiguousarray(x))
        return dict(zip(self._computation.output_names, outputs, strict=True))

    def _on_device(self, x: Array, count: int) -> list[float]:
        return self._call.time_on_device(x, count)

    def _executed(self) -> Execution:
        """Read the engine inspector; engines are built so that its report is complete."""
        inspector = self._engine.create_engine_inspector()
        self._infer(np.zeros((self.min_batch, 3, self.size, self.size), np.float32))
        self._save_kernels()  # every opening comes here, so the next start need not compile
        inspector.execution_context = self._context
        text = inspector.get_engine_information(self._library.LayerInformationFormat.JSON)
        reports = json.loads(text).get("Layers", [])
        return Execution(
            runtime=f"{MODULES[self._flavour][0]} {self._library.__version__}",
            device=self._run_spec.device,
            stored=self._stored_precision,
            whole=self._int8_share,
            layers=tuple(parse_layer(report, self._computation.names) for report in reports),
        )

    def _save_kernels(self) -> None:
        if self._kernel_cache is not None:
            self._kernel_cache.save()

    def _release(self) -> None:
        self._call.close()
        self._save_kernels()
        # in this order: each needs the next
        del self._call, self._computation, self._context, self._kernel_cache
        del self._engine, self._runtime


class _EngineComputation:
    """An engine's execution context as a computation for `CudaCall`.

    Attributes:
        names: of the input and of every output.
        output_names: of every output.
        input_type: element type of the input, as the library's `DataType`.
        input_shape: (N,3,H,W); N is -1 for a free batch.
        batch: pictures per call; -1 for a free batch.
        batch_limits: of a free batch, smallest and largest.
    """

    def __init__(self, library: Any, engine: Any, context: Any) -> None:
        self._context = context
        self.names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._input_name = next(
            name
            for name in self.names
            if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
        )
        self.output_names = [name for name in self.names if name != self._input_name]
        self.input_type = engine.get_tensor_dtype(self._input_name)
        self.input_shape = tuple(engine.get_tensor_shape(self._input_name))
        self.batch = self.input_shape[0]
        self.batch_limits: tuple[int, int | None] = (1, None)
        if self.batch == -1:
            smallest, _, largest = engine.get_tensor_profile_shape(self._input_name, 0)
            self.batch_limits = (smallest[0], largest[0])

    def prepare(self, shape: Shape) -> Sequence[Shape]:
        """Set the shape of the input, and give the shapes of the outputs."""
        if not self._context.set_input_shape(self._input_name, shape):
            raise InputError(
                f"a batch of {shape[0]} is outside the engine's profile, "
                f"{self.batch_limits[0]} to {self.batch_limits[1]}"
            )
        unknown = self._context.infer_shapes()
        if unknown:
            raise ExportError(f"TensorRT cannot tell the shape of {', '.join(unknown)}")
        return [tuple(self._context.get_tensor_shape(name)) for name in self.output_names]

    def bind(self, addresses: Sequence[int]) -> None:
        """Set the device addresses of the input and of every output."""
        names = [self._input_name, *self.output_names]
        for name, address in zip(names, addresses, strict=True):
            if not self._context.set_tensor_address(name, address):
                raise ExportError(f"TensorRT refuses the address of {name}")

    def enqueue(self, stream: Any) -> None:
        """Put the network on a stream."""
        if not self._context.execute_async_v3(int(stream)):
            raise ExportError("TensorRT could not run the engine")


class _KernelCache:
    """The kernels that RTX compiled for an engine, in a file beside it.

    Attributes:
        runtime_cache: RTX's own cache in memory.
    """

    def __init__(self, path: Path, runtime_cache: Any) -> None:
        """Load the kernels of the file into an empty `runtime_cache`."""
        self._path, self.runtime_cache = path, runtime_cache
        self._saved = b""
        if not path.is_file():
            return
        content = path.read_bytes()
        if runtime_cache.deserialize(content):
            self._saved = content
        else:
            say(f"{path} is of another GPU or version: it will be written again")

    def save(self) -> None:
        """Write the file if RTX compiled kernels that it lacks."""
        content = bytes(self.runtime_cache.serialize())
        if content == self._saved:
            return
        try:
            write_bytes(self._path, content)
        except OSError as error:
            say(
                f"{self._path} cannot be written, the next start will compile again: "
                f"{error.strerror}"
            )
        self._saved = content
