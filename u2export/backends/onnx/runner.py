"""A model in an onnxruntime session."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import onnxruntime as ort

from u2export.backends.onnx.profile import parse_profile
from u2export.backends.onnx.session import (
    compute,
    concurrent_calls,
    open_session,
    run_options,
    session_options,
)
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.backend import Runner
from u2export.core.enums import Precision
from u2export.core.execution import Execution
from u2export.core.ports import Port, check_ports
from u2export.core.requests import RunSpec
from u2export.errors import OutputError
from u2export.system import ordered_pool
from u2export.system.files import scratch_folder

_REAL_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")  # and NumPy has them


class OnnxRunner(Runner):
    """A model in an onnxruntime session, on exactly one execution provider."""

    def __init__(self, artifact: Artifact, run_spec: RunSpec) -> None:
        """Load the file.

        Raises:
            ArtifactError: onnxruntime refuses the file, or it is no U²-Net of the facts' size.
            DependencyError: onnxruntime fell back to another provider than the device's.
        """
        self._run_spec, self._path = run_spec, artifact.path
        self._stored_precision, self._int8_share = artifact.stored_precision, artifact.int8_share
        if self._stored_precision is Precision.BF16:
            # the file holds float32 values that bfloat16 can hold
            self._stored_precision = Precision.FP32
        self._session = open_session(artifact.path, session_options(run_spec), run_spec.device)
        self._options = run_options()
        self._call_slots = BoundedSemaphore(concurrent_calls(run_spec))
        check_ports(
            artifact,
            [_port(one) for one in self._session.get_inputs()],
            [_port(one) for one in self._session.get_outputs()],
        )
        first_input = self._session.get_inputs()[0]
        self._input_name = first_input.name
        self._output_name = self._session.get_outputs()[0].name
        batch = first_input.shape[0]
        super().__init__(artifact.facts.size, batch if isinstance(batch, int) else None)

    def _infer(self, x: Array) -> Array:
        return self._run([self._output_name], x)[0]

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        return self._run(None, x)

    def stream(self, inputs: Iterable[Array]) -> Iterator[Array]:
        """Compute many inputs, with as many calls at once as `RunSpec.streams`."""
        copies = (np.array(x, order="C") for x in inputs)  # the caller may refill x at once
        yield from ordered_pool.map_in_order(self, copies, self._run_spec.streams)

    def _run(self, output_names: list[str] | None, x: Array) -> tuple[Array, ...]:
        """Compute the named outputs; all outputs for None."""
        with self._call_slots:
            outputs = compute(self._session, {self._input_name: x}, output_names, self._options)
        return tuple(np.asarray(y, np.float32) for y in outputs)

    def _executed(self) -> Execution:
        """Load the file once more with onnxruntime's profiler, run it once, and read the profile.

        The profile names every kernel that ran after all optimization. It gives the kernel's types
        and the provider that ran it.
        """
        x = np.zeros((self.min_batch, 3, self.size, self.size), np.float32)
        with scratch_folder() as folder:
            options = session_options(self._run_spec)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "kernels")
            session = open_session(self._path, options, self._run_spec.device)
            compute(session, {self._input_name: x}, None, self._options)
            profile = Path(session.end_profiling())
            try:
                events = json.loads(profile.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise OutputError(
                    f"onnxruntime's profile was not written whole into {folder}: is the disk full?"
                ) from error
        return Execution(
            runtime=f"onnxruntime {ort.__version__}",
            device=self._run_spec.device,
            stored=self._stored_precision,
            whole=self._int8_share,
            layers=parse_profile(events),
        )

    def interrupt(self) -> None:
        """End the calls under way, and every later one, between two nodes."""
        self._options.terminate = True

    def _release(self) -> None:
        del self._session


def _port(declared: Any) -> Port:
    """An input or output of a session, which has a type and a shape."""
    # what is no tensor has no shape
    shape = tuple(side if isinstance(side, int) else None for side in declared.shape or ())
    kind = declared.type
    return Port(kind, shape, real=kind in _REAL_TYPES, single=kind == "tensor(float)")
