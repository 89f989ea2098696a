"""What the rest of u2export knows of the TensorRT backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from u2export.backends.tensorrt import build, flavours
from u2export.backends.tensorrt.build import EngineRequest, export, prepare_onnx
from u2export.backends.tensorrt.compatibility import unsupported_reason
from u2export.backends.tensorrt.flavours import FULL, RTX, choose_flavour, collect_errors
from u2export.backends.tensorrt.runner import TensorrtRunner
from u2export.core.arrays import Array, Tensors
from u2export.core.artifact import Artifact, manifest_path, read_artifact
from u2export.core.backend import Backend, BackendOption
from u2export.core.enums import Device, Precision
from u2export.core.requests import RunSpec
from u2export.errors import ArtifactError, ExportError, InputError
from u2export.system import hardware
from u2export.system.files import scratch_folder


def unavailable_reason(device: Device) -> str:
    """Say why there is no GPU to run on; empty if there is one.

    No TensorRT object may be made before this finds a GPU.
    """
    return hardware.query_cuda().reason


def read_facts(path: Path) -> str | None:
    """Give None: an engine has no place for facts, so they are in its manifest."""
    return None


def load_onnx(model: bytes) -> object:
    """Parse an ONNX model from memory; the rtx flavour does so without a GPU.

    Raises:
        ExportError: TensorRT cannot parse it.
    """
    flavour = choose_flavour(None) if hardware.query_cuda().gpus else choose_flavour(RTX)
    library, logger = flavours.load_library(flavour)
    network = library.Builder(logger).create_network(
        1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    if not library.OnnxParser(network, logger).parse(model):
        raise ExportError(collect_errors(logger))
    return network


def module_tensors(artifact: Artifact, x: Array, names: Sequence[str]) -> tuple[Array, Tensors]:
    """Build and run another engine that has the modules' tensors as further outputs.

    An engine gives nothing but its outputs. So this builds one of the same flavour and batch, from
    the ONNX artifact beside the engine.

    Args:
        artifact: the engine.
        x: (N,3,H,W) float32 input.
        names: of the modules.

    Returns:
        The saliency, (N,1,H,W) float32, and the tensors by module name.

    Raises:
        InputError: the ONNX artifact is not beside the engine.
        DependencyError: TensorRT is not installed.
        ExportError: TensorRT cannot build or run the engine.
    """
    import onnx

    from u2export.onnx_graph.expose_outputs import expose_module_outputs

    parent_path = _find_parent(artifact)
    facts = artifact.facts
    model = onnx.load_from_string(prepare_onnx(parent_path, facts))
    module_outputs = expose_module_outputs(model, names)
    request = EngineRequest(
        flavour=choose_flavour(facts.build.get("flavour")),
        name=parent_path.name,
        size=facts.size,
        profile=facts.profile,
        targets=[],
    )
    content = model.SerializeToString(deterministic=True)
    outputs = _build_and_run(artifact, request, content, x)
    saliency = outputs[model.graph.output[0].name]
    return saliency, {name: outputs[output] for name, output in module_outputs.items()}


def _find_parent(artifact: Artifact) -> Path:
    """Find the ONNX artifact beside an engine that has the same weights, precision and size."""
    for path in sorted(artifact.path.parent.glob("*.onnx")):
        if not manifest_path(path).is_file():
            continue
        try:
            facts = read_artifact(path).facts
        except ArtifactError:
            continue  # the engine was not built from a broken artifact
        fields = ("weights", "precision", "size", "outputs", "quantization")
        if all(getattr(facts, field) == getattr(artifact.facts, field) for field in fields):
            return path
    raise InputError(
        f"{artifact.path} shows its tensors only when it is built again, and the ONNX artifact "
        "it was built from is not beside it: export it again there"
    )


def _build_and_run(
    artifact: Artifact, request: EngineRequest, content: bytes, x: Array
) -> dict[str, Array]:
    """Build an engine from ONNX bytes, and give its outputs by name."""
    run_spec = RunSpec(Device.CUDA, hardware.usable_cpus())
    with scratch_folder() as folder:
        path = Path(folder) / artifact.path.name
        path.write_bytes(build.build_in_subprocess(request, content))
        engine = dataclasses.replace(artifact, path=path)
        with closing(TensorrtRunner(engine, run_spec)) as runner:
            return runner.infer_by_name(x)


BACKEND = Backend(
    name="tensorrt",
    suffixes=(".engine",),
    parent="onnx",
    run_packages=("tensorrt_rtx or tensorrt_rtx_bindings or tensorrt", "cuda.bindings"),
    export_packages=("tensorrt_rtx or tensorrt_rtx_bindings or tensorrt", "onnx"),
    run_extra="tensorrt-rtx",
    export_extra="export",
    precisions=(Precision.FP32, Precision.FP16, Precision.INT8),
    devices=(Device.CUDA,),
    export=export,
    open_runner=TensorrtRunner,
    read_facts=read_facts,
    export_options=("batch", "profile", "size", "all_outputs", "opset", "quantization"),
    backend_options=(
        BackendOption(
            "flavour",
            "rtx builds without a GPU and runs on RTX GPUs; tensorrt builds on the GPU it is for. "
            "By default the one that is installed.",
            choices=(RTX, FULL),
        ),
        BackendOption(
            "target", "GPUs to build for, such as SM86,SM89 (rtx). By default all it knows."
        ),
    ),
    check_on_open=(Device.CUDA,),
    unavailable_reason=unavailable_reason,
    unsupported_reason=unsupported_reason,
    load_onnx=load_onnx,
    module_tensors=module_tensors,
    plot_colour="#76a12b",
)
