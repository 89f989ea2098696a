"""A model compiled by OpenVINO for exactly the requested device and arithmetic."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

from u2export.backends.openvino.cache import cache_folder, record_hashes, remove_unverified
from u2export.backends.openvino.library import (
    DEVICES,
    PRECISION_HINTS,
    VERSION,
    error_reason,
    ov,
    read_model,
    require_weights,
    translate_errors,
)
from u2export.backends.openvino.runtime_model import parse_layers
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.backend import Runner
from u2export.core.enums import Device, Precision
from u2export.core.execution import Execution
from u2export.core.ports import Port, check_ports
from u2export.core.requests import RunSpec
from u2export.errors import DependencyError


class OpenvinoRunner(Runner):
    """A compiled model with the requested arithmetic, threads and streams."""

    def __init__(self, artifact: Artifact, run_spec: RunSpec) -> None:
        """Compile the model, or load it from the cache of compiled models.

        Raises:
            ArtifactError: OpenVINO refuses the file, or it is no U²-Net of the facts' size.
            DependencyError: the device cannot compute the request.
        """
        self._run_spec = run_spec
        self._stored_precision, self._int8_share = artifact.stored_precision, artifact.int8_share
        if artifact.foreign:  # before anything takes the memory that it declares
            _check_ports(artifact, read_model(artifact.path))
        self._compiled = _compile(artifact, run_spec)
        _check_ports(artifact, self._compiled)
        batch = self._compiled.inputs[0].partial_shape[0]
        super().__init__(artifact.facts.size, None if batch.is_dynamic else batch.get_length())
        self._idle_requests: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(run_spec.streams):
            self._idle_requests.put(self._compiled.create_infer_request())

    @property
    def from_cache(self) -> bool:
        """Whether the compiled model came from the cache."""
        return bool(self._compiled.get_property("LOADED_FROM_CACHE"))

    def _infer(self, x: Array) -> Array:
        return self._run(x, 1)[0]

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        return self._run(x, len(self._compiled.outputs))

    def _run(self, x: Array, output_count: int) -> tuple[Array, ...]:
        """Compute the first outputs."""
        request = self._idle_requests.get()  # more threads than streams wait
        try:
            with translate_errors():
                request.infer([_as_tensor(x)], share_inputs=True)
                return tuple(copy_output(request, index) for index in range(output_count))
        finally:
            self._idle_requests.put(request)

    def stream(self, inputs: Iterable[Array]) -> Iterator[Array]:
        """Compute many inputs, with as many calls at once as `RunSpec.streams`."""
        self._check_open()
        idle = [self._compiled.create_infer_request() for _ in range(self._run_spec.streams)]
        pending: deque[tuple[ov.InferRequest, Array]] = deque()
        try:
            for x in inputs:
                self._check(x)
                if not idle:
                    idle.append(pending[0][0])
                    yield self._wait_for_first(pending)
                copied = np.array(x, order="C")  # the caller may refill x at once
                request = idle.pop()
                request.start_async([_as_tensor(copied)], share_inputs=True)
                pending.append((request, copied))
            while pending:
                yield self._wait_for_first(pending)
        finally:
            for request, _ in pending:  # the inputs must outlive the computation
                request.wait()

    def _wait_for_first(self, pending: deque[tuple[ov.InferRequest, Array]]) -> Array:
        request, x = pending[0]
        with translate_errors():
            request.wait()
        pending.popleft()
        return self._checked_output(copy_output(request, 0), len(x))

    def _executed(self) -> Execution:
        """Read OpenVINO's runtime model of what it compiled."""
        return Execution(
            runtime=f"openvino {VERSION}",
            device=self._run_spec.device,
            stored=self._stored_precision,
            whole=self._int8_share,
            layers=parse_layers(self._compiled),
        )

    def _release(self) -> None:
        del self._idle_requests, self._compiled


def copy_output(request: ov.InferRequest, index: int) -> Array:
    """Copy an output of a finished request, as float32."""
    return np.array(request.get_output_tensor(index).data, np.float32)


def _as_tensor(x: Array) -> ov.Tensor:
    """Share the input's memory; copy read-only memory, which OpenVINO refuses."""
    return ov.Tensor(x, shared_memory=x.flags.writeable)


def _compile(artifact: Artifact, run_spec: RunSpec) -> ov.CompiledModel:
    require_weights(artifact.path)
    properties = _compile_properties(artifact, run_spec)
    folder = cache_folder(artifact)
    if folder:
        remove_unverified(folder)
        properties["CACHE_DIR"] = str(folder)
    try:
        # From the path: with a compiled model in the cache OpenVINO need not read the file.
        compiled = ov.Core().compile_model(artifact.path, DEVICES[run_spec.device], properties)
    except RuntimeError as error:
        _check_ports(artifact, read_model(artifact.path))  # raises if the file is at fault
        raise DependencyError(
            f"OpenVINO {VERSION} cannot compile {artifact.path} for {run_spec.device}: "
            f"{error_reason(error)}"
        ) from error
    if folder and not compiled.get_property("LOADED_FROM_CACHE"):
        record_hashes(folder)
    return compiled


def _compile_properties(artifact: Artifact, run_spec: RunSpec) -> dict[str, Any]:
    properties: dict[str, Any] = {
        # Without this a CPU that has bfloat16 computes in it, whatever the file holds.
        "INFERENCE_PRECISION_HINT": _precision_hint(run_spec, artifact.facts.precision),
        "PERFORMANCE_HINT": "LATENCY" if run_spec.streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": run_spec.streams,
    }
    if run_spec.device is Device.CPU:
        properties["INFERENCE_NUM_THREADS"] = run_spec.threads
    return properties


def _precision_hint(run_spec: RunSpec, stored: Precision) -> str:
    on_cpu = run_spec.device is Device.CPU
    if run_spec.precision is None and on_cpu and stored is not Precision.BF16:
        return PRECISION_HINTS[Precision.FP32]  # the CPU plugin has no half-precision arithmetic
    return PRECISION_HINTS[run_spec.precision or stored]


def _check_ports(artifact: Artifact, model: ov.Model | ov.CompiledModel) -> None:
    """Refuse a model that does not take and give what a U²-Net does."""
    ports = ([_port(one) for one in ends] for ends in (model.inputs, model.outputs))
    check_ports(artifact, *ports)


def _port(declared: Any) -> Port:
    """An input or output of a model, which has a type and a partial shape."""
    kind, partial = declared.element_type, declared.partial_shape
    sides = None if partial.rank.is_dynamic else [_side(one) for one in partial]
    shape = None if sides is None else tuple(sides)
    return Port(kind.get_type_name(), shape, real=kind.is_real(), single=kind == ov.Type.f32)


def _side(declared: Any) -> int | None:
    return None if declared.is_dynamic else declared.get_length()
