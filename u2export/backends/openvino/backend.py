"""What the rest of u2export knows of the OpenVINO backend."""

from __future__ import annotations

from u2export.backends.openvino.convert import OPENVINO_DIGEST_PREFIX, export
from u2export.backends.openvino.library import (
    DEVICES,
    VERSION,
    error_reason,
    ov,
)
from u2export.backends.openvino.module_tensors import module_tensors
from u2export.backends.openvino.runner import OpenvinoRunner
from u2export.backends.openvino.stored import read_facts, stored_precisions
from u2export.core.artifact import Artifact
from u2export.core.backend import Backend, Runner
from u2export.core.enums import Device, Precision
from u2export.core.requests import RunSpec
from u2export.errors import DependencyError
from u2export.system.hardware import cpu_features


def open_runner(artifact: Artifact, run_spec: RunSpec) -> Runner:
    """Open an OpenVINO model on a device.

    Raises:
        DependencyError: the request needs bfloat16, and the CPU has none.
        ArtifactError: OpenVINO refuses the file, or it is no U²-Net of the facts' size.
    """
    if reason := unsupported_reason(artifact, run_spec):
        raise DependencyError(
            f"{artifact.path} cannot run here: {reason}; --precision fp32 runs it"
        )
    return OpenvinoRunner(artifact, run_spec)


def unsupported_reason(artifact: Artifact, run_spec: RunSpec) -> str:
    """Say why this CPU cannot compute the request; empty if it can.

    Without bfloat16 arithmetic OpenVINO computes in float32 and does not report it.
    """
    precision = run_spec.precision or artifact.stored_precision
    if run_spec.device is not Device.CPU or precision is not Precision.BF16:
        return ""
    _, features = cpu_features()
    lacks_bfloat16 = features and "BF16" not in features and "AMX" not in features
    return "this CPU has no bfloat16 arithmetic" if lacks_bfloat16 else ""


def unavailable_reason(device: Device) -> str:
    """Say why OpenVINO cannot run on a device here; empty if it can."""
    if device is Device.CPU:  # on its own, since a search for all devices takes a while
        return _cpu_plugin_error()
    devices = ov.Core().available_devices
    if any(name.split(".")[0] == DEVICES[device] for name in devices):
        return ""
    return f"OpenVINO {VERSION} finds {', '.join(devices) or 'no device'} and no {DEVICES[device]}"


def _cpu_plugin_error() -> str:
    try:
        ov.Core().get_property(DEVICES[Device.CPU], "FULL_DEVICE_NAME")
    except RuntimeError as error:
        return f"OpenVINO {VERSION} cannot start its CPU plugin: {error_reason(error)}"
    return ""


def load_onnx(model: bytes) -> object:
    """Load an ONNX model from memory."""
    return ov.Core().compile_model(ov.Core().read_model(model), "CPU")


BACKEND = Backend(
    name="openvino",
    suffixes=(".xml",),
    parent="onnx",
    run_packages=("openvino",),
    export_packages=("openvino",),
    run_extra="openvino",
    export_extra="export",
    precisions=(Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8),
    devices=(Device.CPU, Device.GPU),
    export=export,
    open_runner=open_runner,
    read_facts=read_facts,
    run_precisions=(Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8),
    export_options=("batch", "size", "all_outputs", "opset", "quantization"),
    run_options=("streams",),
    companion_suffixes=(".bin",),
    check_on_open=(Device.CPU, Device.GPU),
    unavailable_reason=unavailable_reason,
    unsupported_reason=unsupported_reason,
    stored_precisions=stored_precisions,
    load_onnx=load_onnx,
    module_tensors=module_tensors,
    digest_prefix=OPENVINO_DIGEST_PREFIX,
    plot_colour="#7a5195",
)
