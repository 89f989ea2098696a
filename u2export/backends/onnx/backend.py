"""What the rest of u2export knows of the ONNX backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from u2export.backends.onnx.export import export
from u2export.backends.onnx.runner import OnnxRunner
from u2export.backends.onnx.session import (
    PROVIDERS,
    run_error,
    session_options,
    unoptimized_session,
)
from u2export.backends.onnx.stored import external_files, read_facts, stored_precisions
from u2export.core.arrays import Array, Tensors
from u2export.core.artifact import Artifact
from u2export.core.backend import Backend
from u2export.core.enums import Device, Precision
from u2export.core.requests import RunSpec
from u2export.errors import ArtifactError, pip_command
from u2export.system import hardware
from u2export.system.documents import first_line


def unavailable_reason(device: Device) -> str:
    """Say why this onnxruntime cannot run on a device here; empty if it can."""
    if PROVIDERS[device] not in ort.get_available_providers():
        return (
            f"onnxruntime {ort.__version__} as installed has no {PROVIDERS[device]}: "
            f"pip uninstall onnxruntime && {pip_command('onnxruntime-gpu')}"
        )
    return hardware.query_cuda().reason if device is Device.CUDA else ""


def _load_model(path: Path, *, load_external_data: bool = True) -> Any:
    """Read an ONNX file.

    Raises:
        ArtifactError: it cannot be read.
    """
    import onnx

    try:
        return onnx.load(path, load_external_data=load_external_data)
    except Exception as error:  # protobuf's exceptions are not public, and onnx adds its own
        raise ArtifactError(f"{path} cannot be read as ONNX: {first_line(error)}") from error


def load_onnx(model: bytes) -> object:
    """Load an ONNX model from memory."""
    options = session_options(RunSpec(Device.CPU, 1))
    return ort.InferenceSession(model, options, providers=[PROVIDERS[Device.CPU]])


def module_tensors(artifact: Artifact, x: Array, names: Sequence[str]) -> tuple[Array, Tensors]:
    """Run a copy of an ONNX file that has its modules' tensors as further outputs.

    Graph optimization is off. A fused graph lacks these tensors: onnxruntime makes one kernel of
    convolution and ReLU, and of quantized operations with their neighbours. With the tensors as
    outputs it would fuse some of these and not others. Without optimization every node computes
    what the file says and nothing else.

    Args:
        artifact: the ONNX file.
        x: (N,3,H,W) float32 input.
        names: of the modules.

    Returns:
        The saliency, (N,1,H,W) float32, and the tensors by module name.

    Raises:
        ArtifactError: the file cannot be read.
        ExportError: onnxruntime cannot run it.
    """
    from u2export.onnx_graph.expose_outputs import expose_module_outputs

    model = _load_model(artifact.path)
    saliency_name = model.graph.output[0].name
    module_outputs = expose_module_outputs(model, names)
    try:
        results = unoptimized_session(model)(x, [saliency_name, *module_outputs.values()])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise run_error(error) from error
    saliency, *tensors = [np.asarray(y, np.float32) for y in results]
    return saliency, dict(zip(module_outputs, tensors, strict=True))


BACKEND = Backend(
    name="onnx",
    suffixes=(".onnx",),
    parent=None,
    run_packages=("onnxruntime",),
    export_packages=("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "safetensors"),
    run_extra="onnxruntime",
    export_extra="export",
    precisions=(Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8),
    devices=(Device.CPU, Device.CUDA),
    export=export,
    open_runner=OnnxRunner,
    read_facts=read_facts,
    run_precisions=(Precision.FP32, Precision.FP16, Precision.INT8),
    export_options=("batch", "size", "all_outputs", "opset", "quantization"),
    run_options=("streams",),
    check_on_open=(Device.CUDA,),
    unavailable_reason=unavailable_reason,
    stored_precisions=stored_precisions,
    external_files=external_files,
    load_onnx=load_onnx,
    module_tensors=module_tensors,
    plot_colour="#4a86c5",
)
