"""Building an engine from an ONNX file, in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from u2export.backends.tensorrt import flavours
from u2export.backends.tensorrt.flavours import (
    FULL,
    MODULES,
    RTX,
    choose_flavour,
    collect_errors,
    gpu_generations,
)
from u2export.core.artifact import Artifact, converted_facts
from u2export.core.facts import PROFILE_KEY, QUANTIZATION_KEY, Facts
from u2export.core.int8_record import meets_request, read_int8_record
from u2export.core.requests import ExportSpec
from u2export.errors import (
    ArtifactError,
    DependencyError,
    ExportError,
    InputError,
    U2ExportError,
)
from u2export.system import fixed_process, hardware
from u2export.system.progress import say

DYNAMIC_PROFILE = (1, 4, 8)  # batches for `--batch dynamic`: an engine must name its range


class EngineRequest(BaseModel):
    """A request for an engine, beside the bytes of the ONNX file.

    Attributes:
        flavour: of TensorRT.
        name: of the ONNX file, for error messages.
        size: side of the square input in pixels.
        profile: smallest, typical and largest batch; None where the file fixes the batch.
        targets: names of GPU generations; empty for all.
    """

    model_config = ConfigDict(frozen=True)

    flavour: str
    name: str
    size: int
    profile: tuple[int, int, int] | None
    targets: list[str]


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Build an engine from an ONNX artifact.

    Args:
        parent: the ONNX artifact.
        spec: the request.
        out: path of the new engine.

    Returns:
        The facts of the engine, which has no place for them itself.

    Raises:
        DependencyError: the flavour is not installed, or needs a GPU to build.
        InputError: the flavour lacks an option, or TensorRT would misread the ONNX file.
        ExportError: TensorRT refuses the network or cannot build it.
    """
    flavour = choose_flavour(spec.backend_option("flavour"))
    targets = _parse_targets(spec.backend_option("target"), flavour)
    content = prepare_onnx(parent.path, parent.facts)
    _check_signed_masks(parent)
    if flavour == FULL and not hardware.query_cuda().gpus:
        raise DependencyError(
            "the tensorrt flavour builds on a GPU only, and "
            f"{hardware.query_cuda().reason}: build with --flavour rtx"
        )
    library, _ = flavours.load_library(flavour)
    request = EngineRequest(
        flavour=flavour,
        name=parent.path.name,
        size=parent.facts.size,
        profile=spec.profile or (DYNAMIC_PROFILE if spec.batch is None else None),
        targets=targets,
    )
    out.write_bytes(build_in_subprocess(request, content))
    versions = {MODULES[flavour][0]: library.__version__}
    return converted_facts(parent, spec, versions, _build_facts(request))


def _parse_targets(text: str | None, flavour: str) -> list[str]:
    if text is None:
        return []
    if flavour != RTX:
        raise InputError("--target is an option of the rtx flavour: leave it out, or add it")
    return [name.strip().upper() for name in text.split(",")]


def _build_facts(request: EngineRequest) -> dict[str, str]:
    """Say for `Facts.build` how an engine is built."""
    build_facts = {"flavour": request.flavour}
    if request.targets:
        build_facts["targets"] = ",".join(request.targets)
    if request.profile:
        build_facts[PROFILE_KEY] = ":".join(map(str, request.profile))
    if request.flavour == FULL:
        capability = hardware.query_cuda().gpus[0].capability
        build_facts["capability"] = ".".join(map(str, capability))
    return build_facts


def prepare_onnx(path: Path, facts: Facts) -> bytes:
    """Read an ONNX file in the form that the builder takes.

    A network that u2export quantized gets its signed form, with the rest in half precision.

    Args:
        path: the ONNX file.
        facts: of the file.

    Raises:
        ArtifactError: the file is no ONNX file.
        InputError: TensorRT would misread the file.
    """
    if QUANTIZATION_KEY not in facts.build:
        return _read_foreign_onnx(path)
    import onnx  # only building needs it

    from u2export.onnx_graph import fp16, qdq

    model = qdq.to_signed(onnx.load(path))
    if fp16.scales_fit_half(model):
        fp16.convert_to_half(model)
        fp16.allow_half_quantizers(model)
    else:
        say(f"{path.name} has steps too small for half precision: what is not int8 stays fp32")
    return _serialize_graph(model)


def _check_signed_masks(parent: Artifact) -> None:
    """Check that the signed form of a quantized network keeps the masks.

    Raises:
        ExportError: it does not, and the request is not for the best effort.
    """
    request = parent.facts.quantization
    if request is None or QUANTIZATION_KEY not in parent.facts.build:
        return
    record = read_int8_record(parent)
    if meets_request(record.signed, request):
        return
    sentence = (
        f"in the signed form that TensorRT takes, 8 bits keep {record.signed.description}; "
        f"asked were {request.min_iou:g} and {request.max_mae:g}"
    )
    if not request.best_effort:
        raise ExportError(f"{sentence}: nothing was written; --best-effort writes it")
    say(sentence)


def _read_foreign_onnx(path: Path) -> bytes:
    """Read an ONNX file with its weights; refuse what TensorRT would misread without an error.

    TensorRT reads unsigned quantization as signed, which clips half the range. It reads float64
    as float32.
    """
    import onnx  # only building needs it

    try:
        model = onnx.load(path)
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception as error:  # protobuf and onnx share no base
        raise ArtifactError(f"{path} is no ONNX file: {error}") from error
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    for value in graph.input:
        if types[value.name] != onnx.TensorProto.FLOAT:
            type_name = onnx.TensorProto.DataType.Name(types[value.name]).lower()
            raise InputError(f"{path} takes {type_name} at {value.name}; it must take float32")
    for node in graph.node:
        if _quantizes_unsigned(node, types):
            raise InputError(
                f"{path} is quantized with unsigned zero points (at {node.name or node.input[0]}), "
                "which TensorRT would read as signed: quantize it symmetric and signed"
            )
    return _serialize_graph(model)


def _serialize_graph(model: Any) -> bytes:
    """Give a model's bytes without its metadata, so that they move nothing in the builder's memory.

    The file's own bytes would not do: its weights may lie in another file.
    """
    del model.metadata_props[:]
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _quantizes_unsigned(node: Any, types: dict[str, int]) -> bool:
    """Say whether a node quantizes to unsigned integers, or dequantizes them.

    Args:
        node: of an ONNX graph.
        types: element types of its tensors, as `TensorProto.DataType`.
    """
    import onnx

    unsigned = (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16)
    if node.op_type == "DynamicQuantizeLinear":
        return True
    if node.op_type == "QuantizeLinear":
        return types.get(node.output[0]) in unsigned
    return node.op_type == "DequantizeLinear" and types.get(node.input[0]) in unsigned


def build_in_subprocess(request: EngineRequest, content: bytes) -> bytes:
    """Build an engine in a process of its own.

    The bytes are then the same every time, and a crash of TensorRT leaves this process alive.

    Args:
        request: for the engine.
        content: of the ONNX file.

    Raises:
        U2ExportError: as the building process reports it.
    """
    process = fixed_process.run_function(build_engine_main, request.model_dump_json(), content)
    if process.returncode == 0:
        return process.stdout
    message = process.stdout.decode(errors="replace")
    for kind in (InputError, DependencyError, ArtifactError, ExportError):
        if process.returncode == kind.exit_status:
            raise kind(message)
    raise ExportError(
        f"TensorRT's builder ended with status {process.returncode} on {request.name}"
    )


def build_engine_main(request_json: str) -> None:
    """Run the building process: ONNX on standard input, the engine on standard output.

    After a failure standard output has the message, and the exit status is the error's.

    Args:
        request_json: an `EngineRequest`.
    """
    content = sys.stdin.buffer.read()
    request = EngineRequest.model_validate_json(request_json)
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print to standard output; this sends it to standard error
    with os.fdopen(out, "wb") as file:
        try:
            flavours.load_library(request.flavour)
            file.write(fixed_process.in_fresh_arena(lambda: _build_engine(request, content)))
        except U2ExportError as error:
            file.write(str(error).encode())
            file.flush()
            os._exit(error.exit_status)  # no code of the library may run after a failure


def _build_engine(request: EngineRequest, content: bytes) -> bytes:
    library, logger = flavours.load_library(request.flavour)
    logger.lines.clear()
    builder = library.Builder(logger)
    flags = library.NetworkDefinitionCreationFlag
    strongly_typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(strongly_typed)
    parser = library.OnnxParser(network, logger)
    if not parser.parse(content):
        reasons = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(
            f"TensorRT {library.__version__} cannot read {request.name}: "
            f"{'; '.join(reasons) or collect_errors(logger)}"
        )
    _check_network(library, network, request)
    config = _builder_config(library, builder, network, request)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise ExportError(
            f"TensorRT {library.__version__} cannot build it: {collect_errors(logger)}"
        )
    return bytes(memory)


def _parser_error(error: Any) -> str:
    """Give the parser's message on one node, with the node."""
    operator, name = str(error.node_operator()), str(error.node_name())
    return f"{error.desc()} (at {operator} {name})" if operator else str(error.desc())


def _check_network(library: Any, network: Any, request: EngineRequest) -> None:
    """Check that the parsed network has the inputs and outputs of the facts."""
    if network.num_inputs != 1 or not network.num_outputs:
        raise ExportError(
            f"{request.name} has {network.num_inputs} inputs and {network.num_outputs} outputs "
            "for TensorRT; it must have one input and at least one output"
        )
    network_input, size = network.get_input(0), request.size
    shape = tuple(network_input.shape)
    if network_input.dtype != library.DataType.FLOAT or shape[1:] != (3, size, size):
        raise ExportError(
            f"{request.name} takes {network_input.dtype} {shape}, not float32 pictures of "
            f"3x{size}x{size}"
        )
    for index in range(network.num_outputs):
        output = network.get_output(index)
        if output.shape[0] != shape[0]:
            raise ExportError(
                f"{request.name} gives a batch of {output.shape[0]} at {output.name} for one of "
                f"{shape[0]}: the batch is written down inside it"
            )


def _builder_config(library: Any, builder: Any, network: Any, request: EngineRequest) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # `executed` reads the types
    if hasattr(library.BuilderFlag, "TF32"):
        config.clear_flag(library.BuilderFlag.TF32)  # float32 means float32
    _set_targets(library, config, request.targets)
    if request.profile:
        _set_profile(builder, config, network, request.profile)
    return config


def _set_targets(library: Any, config: Any, targets: list[str]) -> None:
    if not targets:
        return
    known = gpu_generations(library)
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise InputError(f"target must be some of {', '.join(known)}, got {unknown[0]}")
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        if not config.set_compute_capability(getattr(library.ComputeCapability, name), index):
            raise InputError(f"TensorRT {library.__version__} cannot build for {name}")


def _set_profile(builder: Any, config: Any, network: Any, batches: tuple[int, int, int]) -> None:
    network_input = network.get_input(0)
    picture_shape = tuple(network_input.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(network_input.name, *((batch, *picture_shape) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT refuses the batch profile {':'.join(map(str, batches))}")
