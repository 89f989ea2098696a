"""Sessions of onnxruntime: their options, their provider, their errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime as ort

from u2export.core.arrays import Array
from u2export.core.enums import Device
from u2export.core.requests import RunSpec
from u2export.errors import ArtifactError, DependencyError, ExportError
from u2export.system import hardware
from u2export.system.documents import first_line

PROVIDERS = {Device.CPU: "CPUExecutionProvider", Device.CUDA: "CUDAExecutionProvider"}
# float32 on CUDA means float32: by default convolutions would run in TF32.
_PROVIDER_OPTIONS = {Device.CUDA: {"use_tf32": "0"}}
_ERRORS_ONLY, _FATAL_ONLY = 3, 4  # onnxruntime's log severities


def open_session(path: Path, options: ort.SessionOptions, device: Device) -> ort.InferenceSession:
    """Load a file on exactly one device.

    Raises:
        ArtifactError: onnxruntime refuses the file.
        DependencyError: onnxruntime cannot start on the device, or fell back to another one.
    """
    provider = PROVIDERS[device]
    if device is Device.CUDA and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # from the nvidia-* packages, where these are installed
    provider_options = _PROVIDER_OPTIONS.get(device, {})
    try:
        session = ort.InferenceSession(str(path), options, providers=[(provider, provider_options)])
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = first_line(error)
        if device is not Device.CPU:
            open_session(path, options, Device.CPU)  # raises if the file is at fault
            raise DependencyError(
                f"onnxruntime {ort.__version__} cannot start on {device}: {reason}"
            ) from error
        raise ArtifactError(f"onnxruntime {ort.__version__} refuses {path}: {reason}") from error
    if session.get_providers()[0] != provider:
        raise DependencyError(
            f"onnxruntime could not start {provider} and fell back to "
            f"{session.get_providers()[0]}: its CUDA or cuDNN libraries are missing or of "
            "another version"
        )
    return session


def session_options(run_spec: RunSpec) -> ort.SessionOptions:
    """Make the options for a request: its threads, its calls at once, and no surplus memory."""
    options = ort.SessionOptions()
    # All calls share this pool. Each call adds the thread that it comes from.
    options.intra_op_num_threads = max(1, run_spec.threads - concurrent_calls(run_spec) + 1)
    if run_spec.streams > 1:  # other calls can use a thread that would wait busily
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = 1
    # onnxruntime plans all buffers at the first call. That plan doubles the memory (382 against
    # 193 MB for u2netp) and saves no time (214 against 213 ms): benchmarks/runner_memory.py
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    return options


def concurrent_calls(run_spec: RunSpec) -> int:
    """Say how many calls compute at once; the others wait.

    Each call has two threads where there are enough. Two calls on two cores take as long one after
    the other as at the same time, and half the memory (benchmarks/runner_memory.py).
    """
    return max(1, min(run_spec.streams, run_spec.threads // 2))


def unoptimized_session(model) -> Callable[..., Sequence[Array]]:  # type: ignore[no-untyped-def]
    """Make a callable of a model in memory; every node computes exactly what the graph says."""
    options = session_options(RunSpec(Device.CPU, hardware.usable_cpus()))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=[PROVIDERS[Device.CPU]]
    )
    input_name = session.get_inputs()[0].name

    def run(x: Array, output_names: list[str] | None = None) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(output_names, {input_name: x})
        return outputs

    return run


def run_options() -> ort.RunOptions:
    """Make the options of calls: failures are raised, and not told on standard error as well."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    return options


def compute(
    session: ort.InferenceSession,
    inputs: dict[str, Array],
    names: list[str] | None,
    options: ort.RunOptions,
) -> Sequence[Array]:
    """Compute the named outputs; all of them for None.

    Raises:
        ExportError: onnxruntime fails, or `options.terminate` was set.
    """
    try:
        outputs: Sequence[Array] = session.run(names, inputs, options)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise run_error(error) from error
    return outputs


def run_error(error: Exception) -> ExportError:
    """Translate what onnxruntime raises while it computes."""
    return ExportError(f"onnxruntime {ort.__version__} failed: {first_line(error)}")
