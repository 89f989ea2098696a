"""TensorRT in its two flavours: `tensorrt`, and `rtx`, which builds without a GPU.

The network is strongly typed: its precision is that of the ONNX artifact it is built from, and no
builder flag changes it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from u2export import artifact as artifacts
from u2export import steady
from u2export.artifact import QUANTIZATION_KEY, Artifact, Facts
from u2export.backend import Array, Backend, Runner, Setting, Tensors, facts_for
from u2export.cudacall import CudaCall, CudaRuntime, Shape
from u2export.errors import (
    ArtifactError,
    DependencyError,
    ExportError,
    InputError,
    U2ExportError,
)
from u2export.executed import UNKNOWN, Executed, Layer
from u2export.machine import cuda, usable_cpus
from u2export.progress import say
from u2export.quant import account
from u2export.spec import Device, ExportSpec, Precision, RunSpec

RTX, FULL = "rtx", "tensorrt"
# The names each flavour's module may have; with only its wheels installed RTX has the second.
MODULES = {RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"), FULL: ("tensorrt",)}
EXTRAS = {RTX: "tensorrt-rtx", FULL: "tensorrt"}
DYNAMIC = (1, 4, 8)  # the profile of `--batch dynamic`: an engine must name its range
# Words of the engine inspector for types, by the keys of TensorRT 10 and 11 and of RTX.
_TYPE_KEYS = ("Datatype", "Format/Datatype", "DataType")
_TYPES = (
    (re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE), "bf16"),
    (re.compile(r"\b(fp16|half|float16)\b", re.IGNORECASE), "fp16"),
    (re.compile(r"\bu?int8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\b(fp32|float|float32)\b", re.IGNORECASE), "fp32"),
    (re.compile(r"\b(bool|int32|int64)\b", re.IGNORECASE), "whole"),  # shapes, not values
)
# Layer types that move or convert values or order the others, and compute nothing.
_MOVES = re.compile(
    r"reformat|constant|shuffle|concat|copy|cast|identity|noop|slice|^(wait|signal|c?jmp)$",
    re.IGNORECASE,
)
# A fused kernel names its operations: __myl_CastMove_myl0_1. Of these it only moves or converts.
_FUSED = re.compile(r"__myl_([A-Za-z]+)_")
_FUSED_MOVES = re.compile(r"(Cast|Move|Resh|Tran|Slic|Conc)+")
_NOISE = ("catchCudaError", "cudaError 35")  # what follows from there being no GPU


def installed() -> list[str]:
    """List the flavours that are installed."""
    return [flavour for flavour in MODULES if _module(flavour)]


def _module(flavour: str) -> str | None:
    return next((name for name in MODULES[flavour] if importlib.util.find_spec(name)), None)


def choose(flavour: str | None) -> str:
    """Choose a flavour: the one named, the one installed, or with both what fits the machine.

    Raises:
        DependencyError: it is not installed.
    """
    found = installed()
    if flavour is not None and flavour not in found:
        raise DependencyError(
            f"the {flavour} flavour of TensorRT is not installed: "
            f"pip install 'u2export[{EXTRAS[flavour]}]'"
        )
    if flavour is not None:
        return flavour
    if not found:
        raise DependencyError(
            "TensorRT is not installed: pip install 'u2export[tensorrt-rtx]', or "
            "'u2export[tensorrt]' for data-centre GPUs and Jetson"
        )
    if len(found) == 1:
        return found[0]
    chosen = FULL if cuda().gpus else RTX
    why = "a GPU is present" if chosen == FULL else "it builds without a GPU"
    say(f"both flavours of TensorRT are installed: taking {chosen}, since {why}")
    return chosen


@functools.lru_cache
def _library(flavour: str) -> tuple[Any, Any]:
    """Import a flavour, with the one logger that it keeps for the process's life."""
    name = _module(flavour)
    if name is None:
        raise DependencyError(
            f"the {flavour} flavour of TensorRT is not installed: "
            f"pip install 'u2export[{EXTRAS[flavour]}]'"
        )
    try:
        library = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise DependencyError(f"{name} is installed and cannot be loaded: {error}") from error

    class Logger(library.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.lines.append(message)

    return library, Logger()


def _said(logger: Any) -> str:
    """The errors collected since the last time, without what only follows from another."""
    lines = [line for line in logger.lines if not any(noise in line for noise in _NOISE)]
    lines = lines or list(logger.lines)
    logger.lines.clear()
    return "; ".join(dict.fromkeys(" ".join(line.split()) for line in lines)) or "no reason given"


class Order(BaseModel):
    """What an engine is built from, beside the ONNX file's bytes.

    Attributes:
        name: of the ONNX file, for error messages.
        size: side of its pictures in pixels.
        profile: smallest, typical and largest batch; None where the file says.
        targets: names of GPU generations, or none for all.
    """

    model_config = ConfigDict(frozen=True)

    flavour: str
    name: str
    size: int
    profile: tuple[int, int, int] | None
    targets: list[str]


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Build an engine from an ONNX artifact.

    Raises:
        DependencyError: the flavour is not installed, or needs a GPU to build.
        InputError: an option that the flavour lacks, or an ONNX file TensorRT would misread.
        ExportError: TensorRT refuses the network or cannot build it.
    """
    flavour = choose(spec.setting("flavour"))
    targets = _targets(spec.setting("target"), flavour)
    content = _network(parent.path, parent.facts)
    _refuse_lossy(parent)
    if flavour == FULL and not cuda().gpus:
        raise DependencyError(
            f"the tensorrt flavour builds on a GPU only, and {cuda().reason}: build with "
            "--flavour rtx"
        )
    library, _ = _library(flavour)
    profile = spec.profile or (DYNAMIC if spec.batch is None else None)
    order = Order(
        flavour=flavour,
        name=parent.path.name,
        size=parent.facts.size,
        profile=profile,
        targets=targets,
    )
    out.write_bytes(_built_apart(order, content))
    notes = {"flavour": flavour}
    if targets:
        notes["targets"] = ",".join(targets)
    if profile:
        notes["profile"] = ":".join(map(str, profile))
    if flavour == FULL:
        notes["capability"] = _capability()
    return facts_for(parent, spec, {MODULES[flavour][0]: library.__version__}, notes)


def _targets(text: str | None, flavour: str) -> list[str]:
    if text is None:
        return []
    if flavour != RTX:
        raise InputError("--target is an option of the rtx flavour: leave it out, or add it")
    return [name.strip().upper() for name in text.split(",")]


def _network(path: Path, facts: Facts) -> bytes:
    """The ONNX file as the builder is to get it.

    What u2export brought to 8 bits is given its signed form, with the rest in half precision.
    """
    if QUANTIZATION_KEY not in facts.build:
        return _readable(path)
    import onnx  # only building needs it

    from u2export.graph import fp16, quantized

    model = quantized.signed(onnx.load(path))
    if fp16.holds_quantizers(model):
        fp16.to_half(model)
        fp16.let_quantizers_be_half(model)
    else:
        say(f"{path.name} has steps too small for half precision: what is not int8 stays fp32")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _refuse_lossy(parent: Artifact) -> None:
    """Refuse 8 bits that lose the mask in the signed form only.

    Raises:
        ExportError: they do, on the pictures that judged them, and nobody asked for it anyway.
    """
    asked = parent.facts.quantization
    if asked is None or QUANTIZATION_KEY not in parent.facts.build:
        return
    found = account.of(parent)
    if account.keeps(found.signed, asked):
        return
    sentence = (
        f"in the signed form that TensorRT takes, 8 bits keep {found.signed.told}; asked were "
        f"{asked.min_iou:g} and {asked.max_mae:g}"
    )
    if not asked.best_effort:
        raise ExportError(f"{sentence}: nothing was written; --best-effort writes it")
    say(sentence)


def _readable(path: Path) -> bytes:
    """Read an ONNX file whole; refuse what TensorRT would take for something else without an error.

    Unsigned quantization is read as signed, which clips half the range; float64 as float32.
    """
    import onnx  # only building needs it

    try:
        model = onnx.load(path)
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception as error:  # protobuf and onnx share no base
        raise ArtifactError(f"{path} is no ONNX file: {error}") from error
    kinds = {item.name: item.data_type for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    for value in graph.input:
        if kinds[value.name] != onnx.TensorProto.FLOAT:
            kind = onnx.TensorProto.DataType.Name(kinds[value.name]).lower()
            raise InputError(f"{path} takes {kind} at {value.name}; it must take float32")
    for node in graph.node:
        if _quantizes_unsigned(node, kinds):
            raise InputError(
                f"{path} is quantized with unsigned zero points (at {node.name or node.input[0]}), "
                "which TensorRT would read as signed: quantize it symmetric and signed"
            )
    # not the file's bytes, whose weights may lie in another file
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _quantizes_unsigned(node: Any, kinds: dict[str, int]) -> bool:
    """Whether a node gives or takes unsigned integers for real numbers.

    Args:
        node: of an ONNX graph.
        kinds: element types of its tensors, as `TensorProto.DataType`.
    """
    import onnx

    unsigned = (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16)
    if node.op_type == "DynamicQuantizeLinear":
        return True
    if node.op_type == "QuantizeLinear":
        return kinds.get(node.output[0]) in unsigned
    return node.op_type == "DequantizeLinear" and kinds.get(node.input[0]) in unsigned


def _complaint(error: Any) -> str:
    """What the parser says of one node, and which node that is."""
    operator, name = str(error.node_operator()), str(error.node_name())
    return f"{error.desc()} (at {operator} {name})" if operator else str(error.desc())


def _built_apart(order: Order, content: bytes) -> bytes:
    """Build in a process of its own: the same bytes every time, and no crash in this one."""
    done = steady.call(f"{__name__}:answer", order.model_dump_json(), content)
    if done.returncode == 0:
        return done.stdout
    sentence = done.stdout.decode(errors="replace")
    for kind in (InputError, DependencyError, ArtifactError, ExportError):
        if done.returncode == kind.exit_status:
            raise kind(sentence)
    raise ExportError(f"TensorRT's builder ended with status {done.returncode} on {order.name}")


def answer(order: str) -> None:
    """Be the process that builds: ONNX on standard input, the engine on standard output."""
    content = sys.stdin.buffer.read()
    wanted = Order.model_validate_json(order)
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print to standard output as they like
    with os.fdopen(out, "wb") as file:
        try:
            _library(wanted.flavour)
            file.write(steady.in_own_arena(lambda: _built(wanted, content)))
        except U2ExportError as error:
            file.write(str(error).encode())
            file.flush()
            os._exit(error.exit_status)  # nothing of the library's must run after a failure


def _built(order: Order, content: bytes) -> bytes:
    library, logger = _library(order.flavour)
    logger.lines.clear()
    builder = library.Builder(logger)
    flags = library.NetworkDefinitionCreationFlag
    strongly = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(strongly)
    parser = library.OnnxParser(network, logger)
    if not parser.parse(content):
        reasons = [_complaint(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(
            f"TensorRT {library.__version__} cannot read {order.name}: "
            f"{'; '.join(reasons) or _said(logger)}"
        )
    _check_network(library, network, order)
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # `executed` reads the types
    if hasattr(library.BuilderFlag, "TF32"):
        config.clear_flag(library.BuilderFlag.TF32)  # float32 means float32
    _set_targets(library, config, order.targets)
    if order.profile:
        _set_profile(builder, config, network, order.profile)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise ExportError(f"TensorRT {library.__version__} cannot build it: {_said(logger)}")
    return bytes(memory)


def _check_network(library: Any, network: Any, order: Order) -> None:
    """Make sure that the parsed network is the one the facts tell of."""
    if network.num_inputs != 1 or not network.num_outputs:
        raise ExportError(
            f"{order.name} has {network.num_inputs} inputs and {network.num_outputs} outputs "
            "for TensorRT; it must have one input and at least one output"
        )
    first, size = network.get_input(0), order.size
    shape = tuple(first.shape)
    if first.dtype != library.DataType.FLOAT or shape[1:] != (3, size, size):
        raise ExportError(
            f"{order.name} takes {first.dtype} {shape}, not float32 pictures of 3x{size}x{size}"
        )
    for index in range(network.num_outputs):
        output = network.get_output(index)
        if output.shape[0] != shape[0]:
            raise ExportError(
                f"{order.name} gives a batch of {output.shape[0]} at {output.name} for one of "
                f"{shape[0]}: the batch is written down inside it"
            )


def _set_targets(library: Any, config: Any, targets: list[str]) -> None:
    if not targets:
        return
    able = _generations(library)
    wrong = [name for name in targets if name not in able]
    if wrong:
        raise InputError(f"target must be some of {', '.join(able)}, got {wrong[0]}")
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        if not config.set_compute_capability(getattr(library.ComputeCapability, name), index):
            raise InputError(f"TensorRT {library.__version__} cannot build for {name}")


def _set_profile(builder: Any, config: Any, network: Any, profile: tuple[int, int, int]) -> None:
    first = network.get_input(0)
    inner = tuple(first.shape)[1:]
    made = builder.create_optimization_profile()
    made.set_shape(first.name, *((count, *inner) for count in profile))
    if config.add_optimization_profile(made) < 0:
        raise ExportError(f"TensorRT refuses the batch profile {':'.join(map(str, profile))}")


def _capability() -> str:
    return ".".join(map(str, cuda().gpus[0].capability))


class _Engine:
    """An engine's execution context as work for the GPU."""

    def __init__(self, library: Any, engine: Any, context: Any) -> None:
        self._context = context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = library.TensorIOMode.INPUT
        self.names = names
        self._input = next(n for n in names if engine.get_tensor_mode(n) == inputs)
        self.type = engine.get_tensor_dtype(self._input)
        self.outputs = [n for n in names if n != self._input]
        self.batch = engine.get_tensor_shape(self._input)[0]
        self.shape = tuple(engine.get_tensor_shape(self._input))
        self.limits: tuple[int, int | None] = (1, None)
        if self.batch == -1:
            low, _, high = engine.get_tensor_profile_shape(self._input, 0)
            self.limits = (low[0], high[0])

    def shapes(self, shape: Shape) -> Sequence[Shape]:
        """Set the input's shape; give the outputs'."""
        if not self._context.set_input_shape(self._input, shape):
            raise InputError(
                f"a batch of {shape[0]} is outside the engine's profile, "
                f"{self.limits[0]} to {self.limits[1]}"
            )
        unknown = self._context.infer_shapes()
        if unknown:
            raise ExportError(f"TensorRT cannot tell the shape of {', '.join(unknown)}")
        return [tuple(self._context.get_tensor_shape(name)) for name in self.outputs]

    def bind(self, addresses: Sequence[int]) -> None:
        """Tell the context where its tensors are."""
        for name, address in zip([self._input, *self.outputs], addresses, strict=True):
            if not self._context.set_tensor_address(name, address):
                raise ExportError(f"TensorRT refuses the address of {name}")

    def enqueue(self, stream: Any) -> None:
        """Put the network on a stream."""
        if not self._context.execute_async_v3(int(stream)):
            raise ExportError("TensorRT could not run the engine")


class TensorrtRunner(Runner):
    """An engine on a GPU."""

    def __init__(self, artifact: Artifact, asked: RunSpec) -> None:
        """Load the engine.

        Raises:
            ArtifactError: it was built by another version or for another GPU, or is damaged.
            DependencyError: its flavour of TensorRT is not installed.
        """
        facts = artifact.facts
        self._asked, self._stored, self._whole = asked, artifact.stored, artifact.int8_share
        self._flavour = choose(facts.build.get("flavour"))
        self._library, self._logger = _library(self._flavour)
        _check_version(artifact, self._flavour, self._library.__version__)
        if reason := unfit(artifact, asked):
            raise ArtifactError(f"{artifact.path} cannot run here: {reason}; export it again")
        self._cache = artifact.path.with_name(artifact.path.name + ".cache")
        runtime = CudaRuntime.load()
        runtime.call("cudaSetDevice", 0)
        self._logger.lines.clear()
        self._runtime = self._library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(artifact.path.read_bytes())
        if self._engine is None:
            raise ArtifactError(
                f"TensorRT {self._library.__version__} refuses {artifact.path}: "
                f"{_said(self._logger)}"
            )
        self._kernels: Any = None
        self._kept = b""
        self._context = self._execution_context()
        if self._context is None:
            raise ExportError(f"TensorRT cannot start {artifact.path}: {_said(self._logger)}")
        self._work = _Engine(self._library, self._engine, self._context)
        size = facts.size
        if self._work.shape[1:] != (3, size, size):
            raise ArtifactError(
                f"{artifact.path} takes {self._work.shape}, not pictures of 3x{size}x{size}: it is "
                f"not a {facts.model}"
            )
        batch = self._work.batch
        if self._work.type != self._library.DataType.FLOAT:
            raise ArtifactError(f"{artifact.path} takes {self._work.type}; it must take float32")
        super().__init__(size, None if batch == -1 else batch, self._work.limits)
        # RTX captures its own graphs
        self._call = CudaCall(runtime, self._work, graphs=self._flavour == FULL)

    def _execution_context(self) -> Any:
        if self._flavour == FULL:
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._kernels = config.create_runtime_cache()
        if self._cache.is_file():
            found = self._cache.read_bytes()
            if self._kernels.deserialize(found):
                self._kept = found
            else:
                say(f"{self._cache} is of another GPU or version: it will be written again")
        config.set_runtime_cache(self._kernels)
        return self._engine.create_execution_context(config)

    def _keep_kernels(self) -> None:
        """Write the kernels down if RTX compiled more than were there."""
        if self._kernels is None:
            return
        content = bytes(self._kernels.serialize())
        if content != self._kept:
            _keep(self._cache, content)
            self._kept = content

    def _infer(self, x: Array) -> Array:
        return self._call(x)[0]

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        return tuple(self._call(x))

    def _on_device(self, x: Array, count: int) -> list[float]:
        return self._call.timed(x, count)

    def named(self, x: Array) -> dict[str, Array]:
        """Compute every output of an engine by its name, whatever their shapes.

        Args:
            x: as for a call.
        """
        self._check(x)
        return dict(zip(self._work.outputs, self._call(np.ascontiguousarray(x)), strict=True))

    def _executed(self) -> Executed:
        """Ask the engine inspector, whose notes are complete since engines are built for it."""
        inspector = self._engine.create_engine_inspector()
        self._infer(np.zeros((self.fewest, 3, self.size, self.size), np.float32))
        self._keep_kernels()  # every opening comes here: the next start need not compile
        inspector.execution_context = self._context
        text = inspector.get_engine_information(self._library.LayerInformationFormat.JSON)
        layers = json.loads(text).get("Layers", [])
        return Executed(
            runtime=f"{MODULES[self._flavour][0]} {self._library.__version__}",
            device=self._asked.device,
            stored=self._stored,
            whole=self._whole,
            layers=tuple(layer_told(layer, self._work.names) for layer in layers),
        )

    def _release(self) -> None:
        self._call.close()
        self._keep_kernels()
        # in this order: each needs the next
        del self._call, self._work, self._context, self._kernels, self._engine, self._runtime


def layer_told(told: dict[str, Any] | str, ends: Sequence[str] = ()) -> Layer:
    """Read one layer of the engine inspector; one that tells only its name has no precision.

    Args:
        told: the inspector's notes of the layer.
        ends: names of the engine's input and outputs, which are float32 whatever is computed.
    """
    if isinstance(told, str):
        moves = _only_moves(told, UNKNOWN)
        return Layer(
            name=told, kind=UNKNOWN, device=str(Device.CUDA), precision=UNKNOWN, moves=moves
        )
    outputs, inputs = told.get("Outputs") or [], told.get("Inputs") or []
    name, kind = str(told.get("Name", UNKNOWN)), str(told.get("LayerType", UNKNOWN))
    count = (told.get("Weights") or {}).get("Count", 0)
    places = math.prod((outputs[0].get("Dimensions") or [0])[2:]) if outputs else 0
    inner = [t for t in (*inputs, *outputs) if t.get("Name") not in ends] or [*inputs, *outputs]
    types = sorted({_type_of(tensor) for tensor in inner})
    precision = _arithmetic(types, str(told.get("TacticName", "")))
    return Layer(
        name=name,
        kind=kind,
        device=str(Device.CUDA),
        precision=precision,
        moves=_only_moves(name, kind) or types == ["whole"],
        macs=int(count) * places,
    )


def _only_moves(name: str, kind: str) -> bool:
    fused = _FUSED.search(name)
    return bool(_MOVES.search(kind) or (fused and _FUSED_MOVES.fullmatch(fused[1])))


def _arithmetic(types: list[str], tactic: str) -> str:
    """What a layer computes in, by the types of its tensors and the name of its kernel."""
    values = [name for name in types if name not in ("whole", UNKNOWN)]
    if not values:
        return UNKNOWN
    if values == ["fp32"] and "tf32" in tactic.lower():
        return "tf32"
    return "int8" if "int8" in values else "+".join(values)


def _type_of(tensor: dict[str, Any]) -> str:
    words = " ".join(str(tensor.get(key, "")) for key in _TYPE_KEYS)
    return next((name for pattern, name in _TYPES if pattern.search(words)), UNKNOWN)


def _check_version(artifact: Artifact, flavour: str, version: str) -> None:
    name = MODULES[flavour][0]
    built = artifact.facts.tools.get(name)
    if built is not None and built != version:
        raise ArtifactError(
            f"{artifact.path} was built by {name} {built}, here is {version}: export it again"
        )


def unfit(artifact: Artifact, asked: RunSpec) -> str:
    """Say why an engine cannot run on this machine's GPU, as a phrase; empty if it can."""
    gpu = cuda().gpus[0]
    here = ".".join(map(str, gpu.capability))
    name = "SM" + "".join(map(str, gpu.capability))
    built = artifact.facts.build.get("capability")
    if built is not None and built != here:
        return f"it was built for compute capability {built}, here is {gpu.name} with {here}"
    targets = artifact.facts.build.get("targets")
    if targets is not None and name not in targets.split(","):
        return f"it was built for {targets}, here is {gpu.name} ({name})"
    if artifact.facts.build.get("flavour") == RTX and name not in _generations(_library(RTX)[0]):
        return f"the rtx flavour has no code for {gpu.name} ({name}): use --flavour tensorrt"
    return ""


def _generations(library: Any) -> list[str]:
    return [name for name in dir(library.ComputeCapability) if name.startswith("SM")]


def _keep(path: Path, content: bytes) -> None:
    """Write the kernels RTX compiled beside the engine, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        say(f"{path} cannot be written, the next start will compile again: {error.strerror}")


def open_runner(artifact: Artifact, asked: RunSpec) -> Runner:
    """Open an engine on the GPU."""
    return TensorrtRunner(artifact, asked)


def missing_device(device: Device) -> str:
    """Say why there is no GPU; no TensorRT object is made before this says there is one."""
    return cuda().reason


def read_facts(path: Path) -> str | None:
    """None: an engine has no place for facts, they are in its manifest."""
    return None


def accepts(model: bytes) -> object:
    """Parse an ONNX model that is in memory; the rtx flavour does so without a GPU."""
    library, logger = _library(choose(None) if cuda().gpus else choose(RTX))
    network = library.Builder(logger).create_network(
        1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    if not library.OnnxParser(network, logger).parse(model):
        raise ExportError(_said(logger))
    return network


def tensors(artifact: Artifact, x: Array, names: Sequence[str]) -> tuple[Array, Tensors]:
    """Run an engine, built for this, whose modules' tensors are marked as outputs.

    An engine shows nothing but its outputs, so another one is built, of the same flavour and batch,
    from the ONNX artifact that lies beside it.

    Raises:
        InputError: that ONNX artifact is not there.
        DependencyError: TensorRT is not there.
        ExportError: TensorRT cannot build or run it.
    """
    import onnx

    from u2export.graph.marked import mark

    parent = _parent_beside(artifact)
    model = onnx.load_from_string(_network(parent, artifact.facts))
    found = mark(model, names)
    facts = artifact.facts
    order = Order(
        flavour=choose(facts.build.get("flavour")),
        name=parent.name,
        size=facts.size,
        profile=_profile_of(facts),
        targets=[],
    )
    with tempfile.TemporaryDirectory(prefix="u2export-") as folder:
        path = Path(folder) / artifact.path.name
        path.write_bytes(_built_apart(order, model.SerializeToString(deterministic=True)))
        asked = RunSpec(Device.CUDA, usable_cpus())
        with closing(TensorrtRunner(dataclasses.replace(artifact, path=path), asked)) as runner:
            given = runner.named(x)
    first = model.graph.output[0].name
    return given[first], {name: given[output] for name, output in found.items()}


def _parent_beside(artifact: Artifact) -> Path:
    """The ONNX artifact an engine was built from, found by its weights, precision and size."""
    for path in sorted(artifact.path.parent.glob("*.onnx")):
        if not artifacts.manifest_path(path).is_file():
            continue
        try:
            facts = artifacts.read(path).facts
        except ArtifactError:
            continue  # whatever it is, it is not what the engine was built from
        kinds = ("weights", "precision", "size", "outputs", "quantization")
        if all(getattr(facts, kind) == getattr(artifact.facts, kind) for kind in kinds):
            return path
    raise InputError(
        f"{artifact.path} shows its tensors only when it is built again, and the ONNX artifact "
        "it was built from is not beside it: export it again there"
    )


def _profile_of(facts: Facts) -> tuple[int, int, int] | None:
    text = facts.build.get("profile")
    if text is None:
        return None
    low, typical, high = map(int, text.split(":"))
    return low, typical, high


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
    open=open_runner,
    read_facts=read_facts,
    options=("batch", "profile", "size", "all_outputs", "opset", "quantization"),
    settings=(
        Setting(
            "flavour",
            "rtx builds without a GPU and runs on RTX GPUs; tensorrt builds on the GPU it is for. "
            "By default the one that is installed.",
            choices=(RTX, FULL),
        ),
        Setting("target", "GPUs to build for, such as SM86,SM89 (rtx). By default all it knows."),
    ),
    proof_at_open=(Device.CUDA,),
    missing_device=missing_device,
    unfit=unfit,
    accepts=accepts,
    tensors=tensors,
)
