"""What the rest of u2export knows of the OpenVINO backend."""

from __future__ import annotations

import math
from pathlib import Path

from u2export.backends.openvino.convert import OPENVINO_DIGEST_PREFIX, WEIGHTS_HASH_KEY, export
from u2export.backends.openvino.library import (
    DEVICES,
    VERSION,
    error_reason,
    ov,
    read_model,
)
from u2export.backends.openvino.module_tensors import module_tensors
from u2export.backends.openvino.runner import OpenvinoRunner
from u2export.core.artifact import Artifact
from u2export.core.backend import Backend, Runner
from u2export.core.enums import Device, Precision
from u2export.core.facts import FACTS_KEY, parse_facts
from u2export.core.requests import RunSpec
from u2export.errors import ArtifactError, DependencyError
from u2export.system.files import file_sha256
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


def read_facts(path: Path) -> str | None:
    """Read the facts in a model's `rt_info`.

    Returns:
        Their text; None for a foreign file.

    Raises:
        ArtifactError: the `.bin` is missing, or is not the one the `.xml` was written with.
    """
    model = read_model(path)
    if not model.has_rt_info([FACTS_KEY, FACTS_KEY]):
        return None
    try:
        text = str(model.get_rt_info([FACTS_KEY, FACTS_KEY]).astype(str))
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged: its facts are no text") from error
    weights_path = path.with_suffix(".bin")
    expected_hash = parse_facts(text, path).build.get(WEIGHTS_HASH_KEY)
    if file_sha256(weights_path) != expected_hash:
        raise ArtifactError(f"{weights_path} does not belong to {path.name}: export it again")
    return text


def load_onnx(model: bytes) -> object:
    """Load an ONNX model from memory."""
    return ov.Core().compile_model(ov.Core().read_model(model), "CPU")


def stored_precision(path: Path) -> Precision:
    """Find the precision of most values in a file; int8 where anything is quantized."""
    precisions = {
        "f32": Precision.FP32,
        "f16": Precision.FP16,
        "bf16": Precision.BF16,
        "i8": Precision.INT8,
        "u8": Precision.INT8,
    }
    counts = dict.fromkeys(precisions.values(), 0)
    for node in read_model(path).get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            return Precision.INT8
        if node.get_type_name() == "Constant":
            type_name = node.get_output_element_type(0).to_string()
            if type_name in precisions:
                counts[precisions[type_name]] += math.prod(node.get_output_shape(0))
    return max(counts, key=lambda precision: counts[precision])


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
    stored_precision=stored_precision,
    load_onnx=load_onnx,
    module_tensors=module_tensors,
    digest_prefix=OPENVINO_DIGEST_PREFIX,
    plot_colour="#7a5195",
)
