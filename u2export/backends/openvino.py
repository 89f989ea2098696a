"""OpenVINO: converted from the ONNX artifact, run with the arithmetic pinned."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export import artifact as artifacts
from u2export import deferred
from u2export.artifact import DIGEST_KEY, FACTS_KEY, Artifact, Facts, embed_digest, no_digest
from u2export.backend import Array, Backend, Runner, Tensors, facts_for
from u2export.errors import ArtifactError, DependencyError, ExportError, InputError
from u2export.executed import UNKNOWN, Executed, Layer
from u2export.machine import compiled_folder, cpu_features, usable_cpus
from u2export.progress import say
from u2export.spec import Device, ExportSpec, Precision, RunSpec

if TYPE_CHECKING:
    import openvino as ov
else:  # its converter, which nothing here uses, takes most of its time to import
    ov = deferred.load("openvino", "openvino.tools.ovc", "convert_model")

VERSION = ov.__version__.split("-")[0]
DEVICES = {Device.CPU: "CPU", Device.GPU: "GPU"}
_PLACES = {name: str(device) for device, name in DEVICES.items()}
HINTS = {Precision.FP32: "f32", Precision.FP16: "f16", Precision.BF16: "bf16"}
HINTS[Precision.INT8] = "f32"  # what is quantized runs so by itself: this is for the rest
NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
# Layer types that move, convert or reorder values and compute nothing.
MOVES = frozenset(
    {"Const", "Concatenation", "Convert", "Input", "MemoryInput", "MemoryOutput", "Output"}
    | {"Reorder", "Reshape", "ShapeOf", "Split", "StridedSlice", "Transpose"}
)
_KEPT = frozenset({"Constant", "Convolution", "Convert", "Subtract", "Multiply", "Result"})
_NOTES = ("layerType", "originalLayersNames", "runtimePrecision")  # read of each layer
_BIN_KEY = "bin_sha256"
# OpenVINO carries metadata of an ONNX file over, its digest too: this one is told from it.
DIGEST_MARK = "u2export-openvino-sha256:"


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Convert an ONNX artifact to an `.xml` with its `.bin`.

    Raises:
        ExportError: OpenVINO cannot read the ONNX file or write its own.
    """
    try:
        model = ov.Core().read_model(parent.path)
        _fold_constants(model)
        _name_nameless(model)
        ov.save_model(model, out, compress_to_fp16=False)
        weights = artifacts.sha256_of(out.with_suffix(".bin"))
        facts = facts_for(parent, spec, {"openvino": VERSION}, {_BIN_KEY: weights})
        for key, value in {**facts.readable(), FACTS_KEY: facts.model_dump_json()}.items():
            model.set_rt_info(value, [FACTS_KEY, key])
        model.set_rt_info(no_digest(DIGEST_MARK), [FACTS_KEY, DIGEST_KEY])
        ov.save_model(model, out, compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO {VERSION} cannot convert it: {_reason(error)}") from error
    if artifacts.sha256_of(out.with_suffix(".bin")) != weights:
        raise ExportError("OpenVINO wrote other weights the second time")
    embed_digest(out, DIGEST_MARK)
    return facts


def _fold_constants(model: ov.Model) -> None:
    """Compute what is always the same; of a quantized model all but its weights' dequantizers.

    OpenVINO's pass would leave nothing of the 8 bits but float32 weights. So it runs on a copy, and
    what it found for the other operations is taken over.
    """
    from openvino.passes import ConstantFolding, Manager

    whole = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    folded = model.clone() if whole else model
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(folded)
    if not whole:
        return
    known = {(node.get_friendly_name(), node.get_type_name()): node for node in folded.get_ops()}
    for node in model.get_ordered_ops():
        twin = known.get((node.get_friendly_name(), node.get_type_name()))
        if twin is None or node.get_type_name() in _KEPT:
            continue
        for place, given in enumerate(node.inputs()):
            found = twin.input_value(place).get_node()
            if found.get_type_name() == "Constant":
                constant = ov.op.Constant(np.array(found.data))
                given.replace_source_output(constant.output(0))


def _name_nameless(model: ov.Model) -> None:
    """Number by place what OpenVINO numbered by a count that goes on from run to run."""
    for place, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if kind == "Constant" or re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind.lower()}_{place}")


class OpenvinoRunner(Runner):
    """A compiled model whose arithmetic, threads and streams are what was asked."""

    def __init__(self, artifact: Artifact, asked: RunSpec) -> None:
        """Compile the model, or take it from the cache of compiled models.

        Raises:
            ArtifactError: OpenVINO refuses the file, or it is no U²-Net of the facts' size.
            DependencyError: the device cannot compute as asked.
        """
        facts = artifact.facts
        self._asked, self._stored, self._whole = asked, artifact.stored, artifact.int8_share
        self._compiled = _compile(artifact, asked)
        inputs = self._compiled.inputs
        shape = inputs[0].partial_shape if len(inputs) == 1 else None
        expected = ov.PartialShape([-1, 3, facts.size, facts.size])
        if shape is None or not expected.compatible(shape):
            raise ArtifactError(
                f"{artifact.path} takes {[str(i.partial_shape) for i in inputs]}, not "
                f"pictures of 3x{facts.size}x{facts.size}: it is not a {facts.model}"
            )
        if inputs[0].element_type != ov.Type.f32:
            kind = inputs[0].element_type.get_type_name()
            raise ArtifactError(f"{artifact.path} takes {kind}; it must take float32")
        super().__init__(facts.size, None if shape[0].is_dynamic else shape[0].get_length())
        self._free: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(asked.streams):
            self._free.put(self._compiled.create_infer_request())

    @property
    def from_cache(self) -> bool:
        """Whether the compiled model was taken from the cache."""
        return bool(self._compiled.get_property("LOADED_FROM_CACHE"))

    def _infer(self, x: Array) -> Array:
        return self._outputs(x, 1)[0]

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        return self._outputs(x, len(self._compiled.outputs))

    def _outputs(self, x: Array, count: int) -> tuple[Array, ...]:
        request = self._free.get()  # more threads than streams wait
        try:
            with _failing():
                request.infer([_view(x)], share_inputs=True)
                return tuple(_owned(request, i) for i in range(count))
        finally:
            self._free.put(request)

    def stream(self, inputs: Iterable[Array]) -> Iterator[Array]:
        """Compute many inputs, as many at once as the runner was opened for."""
        free = [self._compiled.create_infer_request() for _ in range(self._asked.streams)]
        pending: deque[tuple[ov.InferRequest, Array]] = deque()
        try:
            for x in inputs:
                self._check(x)
                if not free:
                    free.append(pending[0][0])
                    yield self._finished(pending)
                own = np.array(x, order="C")  # the caller may fill x again at once
                request = free.pop()
                request.start_async([_view(own)], share_inputs=True)
                pending.append((request, own))
            while pending:
                yield self._finished(pending)
        finally:
            for request, _ in pending:  # the inputs must outlive what computes with them
                request.wait()

    def _finished(self, pending: deque[tuple[ov.InferRequest, Array]]) -> Array:
        request, x = pending[0]
        with _failing():
            request.wait()
        pending.popleft()
        return self._own(_owned(request, 0), len(x))

    def _executed(self) -> Executed:
        """Read OpenVINO's own model of what it compiled."""
        operations = self._compiled.get_runtime_model().get_ordered_ops()
        names = self._compiled.get_property("EXECUTION_DEVICES")
        device = ", ".join(_PLACES.get(name.split(".")[0], name) for name in names)
        return Executed(
            runtime=f"openvino {VERSION}",
            device=self._asked.device,
            stored=self._stored,
            whole=self._whole,
            layers=tuple(_layer(node, device) for node in operations),
        )

    def _release(self) -> None:
        del self._free, self._compiled


@contextmanager
def _failing() -> Iterator[None]:
    """Translate what OpenVINO raises while it computes."""
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"OpenVINO {VERSION} failed: {_reason(error)}") from error


def _view(x: Array) -> ov.Tensor:
    """The input where it lies; a copy of one that may not be written, which OpenVINO refuses."""
    return ov.Tensor(x, shared_memory=x.flags.writeable)


def _owned(request: ov.InferRequest, index: int) -> Array:
    return np.array(request.get_output_tensor(index).data, np.float32)


def _layer(node: Any, device: str) -> Layer:
    info = node.get_rt_info()
    notes = {key: str(info[key].value) for key in _NOTES if key in info}
    kind = notes.get("layerType", node.get_type_name())
    macs = 0
    if "Convolution" in kind and len(node.inputs()) > 1:
        kernel = list(node.input(1).get_shape())
        shape = node.get_output_partial_shape(0).get_min_shape()
        macs = math.prod(kernel[1:]) * math.prod(max(1, side) for side in shape)  # 0: a free batch
    # Several layers of the file may have become one; the last gives the module's result.
    name = notes.get("originalLayersNames", "").split(",")[-1] or node.get_friendly_name()
    return Layer(
        name=name,
        kind=kind,
        device=device,
        precision=NAMES.get(notes.get("runtimePrecision", ""), UNKNOWN),
        moves=kind in MOVES,
        macs=macs,
    )


def _read(path: Path) -> ov.Model:
    _require_weights(path)
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO {VERSION} refuses {path}: {_reason(error)}") from error


def _require_weights(path: Path) -> None:
    if not path.with_suffix(".bin").is_file():
        raise ArtifactError(f"{path} is incomplete: {path.stem}.bin is missing beside it")


def _compile(artifact: Artifact, asked: RunSpec) -> ov.CompiledModel:
    _require_weights(artifact.path)
    settings: dict[str, Any] = {
        # Without this a CPU that has bfloat16 computes in it, whatever the file holds.
        "INFERENCE_PRECISION_HINT": _hint(asked, artifact.facts.precision),
        "PERFORMANCE_HINT": "LATENCY" if asked.streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": asked.streams,
    }
    if asked.device is Device.CPU:
        settings["INFERENCE_NUM_THREADS"] = asked.threads
    folder = _cache(artifact)
    if folder:
        _drop_unproved(folder)
        settings["CACHE_DIR"] = str(folder)
    try:
        # from the file: a compiled model that is in the cache then needs no reading of it
        compiled = ov.Core().compile_model(artifact.path, DEVICES[asked.device], settings)
    except RuntimeError as error:
        _read(artifact.path)  # raises if it is the file that is at fault
        raise DependencyError(
            f"OpenVINO {VERSION} cannot compile {artifact.path} for {asked.device}: "
            f"{_reason(error)}"
        ) from error
    if folder and not compiled.get_property("LOADED_FROM_CACHE"):
        _prove(folder)
    return compiled


def _hint(asked: RunSpec, stored: Precision) -> str:
    if asked.precision is None and asked.device is Device.CPU and stored is not Precision.BF16:
        return HINTS[Precision.FP32]  # the CPU plugin has no half-precision arithmetic
    return HINTS[asked.precision or stored]


def unfit(artifact: Artifact, asked: RunSpec) -> str:
    """Say why this CPU cannot compute as asked: OpenVINO would take float32 without a word."""
    if asked.device is not Device.CPU or (asked.precision or artifact.stored) is not Precision.BF16:
        return ""
    _, features = cpu_features()
    lacks = features and "BF16" not in features and "AMX" not in features
    return "this CPU has no bfloat16 arithmetic" if lacks else ""


def _cache(artifact: Artifact) -> Path | None:
    """The folder for this very file as this very OpenVINO compiles it."""
    digest = artifacts.sha256_of(artifact.path)[:16]
    weights = artifact.files.get(artifact.path.with_suffix(".bin").name)
    weights = weights or artifacts.sha256_of(artifact.path.with_suffix(".bin"))
    folder = compiled_folder() / f"openvino-{VERSION}-{digest}-{weights[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"compiled models cannot be kept in {folder.parent}: {error.strerror}")
        return None
    return folder


def _drop_unproved(folder: Path) -> None:
    """Remove compiled models that are not the bytes they were: OpenVINO would run them."""
    for blob in folder.glob("*.blob"):
        note = blob.with_suffix(".sha256")
        try:
            if note.read_bytes() == artifacts.sha256_of(blob).encode():
                continue
        except (OSError, InputError):
            pass  # no note, or another process is at it: then it is not proved
        with contextlib.suppress(OSError):
            blob.unlink(missing_ok=True)


def _prove(folder: Path) -> None:
    """Note the hashes of the compiled models that have none."""
    for blob in folder.glob("*.blob"):
        note = blob.with_suffix(".sha256")
        with contextlib.suppress(OSError, InputError):
            if not note.exists() or note.stat().st_mtime_ns < blob.stat().st_mtime_ns:
                part = note.with_suffix(f".{os.getpid()}.part")
                part.write_text(artifacts.sha256_of(blob))
                part.replace(note)


def _reason(error: RuntimeError) -> str:
    """The last line OpenVINO wrote: those before it are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "it gives no reason"


def open_runner(artifact: Artifact, asked: RunSpec) -> Runner:
    """Open an OpenVINO model on a device.

    Raises:
        DependencyError: it is to compute in bfloat16, and the CPU has none.
    """
    if reason := unfit(artifact, asked):
        raise DependencyError(
            f"{artifact.path} cannot run here: {reason}; --precision fp32 runs it"
        )
    return OpenvinoRunner(artifact, asked)


def missing_device(device: Device) -> str:
    """Say why OpenVINO cannot run on a device here."""
    if device is Device.CPU:  # asked alone: to look for the others takes a while
        try:
            ov.Core().get_property(DEVICES[device], "FULL_DEVICE_NAME")
        except RuntimeError as error:
            return f"OpenVINO {VERSION} cannot start its CPU plugin: {_reason(error)}"
        return ""
    found = ov.Core().available_devices
    if any(name.split(".")[0] == DEVICES[device] for name in found):
        return ""
    return f"OpenVINO {VERSION} finds {', '.join(found) or 'no device'} and no {DEVICES[device]}"


def read_facts(path: Path) -> str | None:
    """Read the facts in a model's rt_info, or None in a foreign one.

    Raises:
        ArtifactError: the `.bin` is missing or is not the one the `.xml` was written with.
    """
    model = _read(path)
    if not model.has_rt_info([FACTS_KEY, FACTS_KEY]):
        return None
    text = str(model.get_rt_info([FACTS_KEY, FACTS_KEY]).astype(str))
    weights = path.with_suffix(".bin")
    expected = artifacts.parse_facts(text, path).build.get(_BIN_KEY)
    if artifacts.sha256_of(weights) != expected:
        raise ArtifactError(f"{weights} does not belong to {path.name}: export it again")
    return text


def accepts(model: bytes) -> object:
    """Load an ONNX model that is in memory."""
    return ov.Core().compile_model(ov.Core().read_model(model), "CPU")


def stored(path: Path) -> Precision:
    """Tell the precision most of a file's values have; int8 where anything is quantized."""
    kinds = {"f32": Precision.FP32, "f16": Precision.FP16, "bf16": Precision.BF16}
    kinds |= dict.fromkeys(("i8", "u8"), Precision.INT8)
    counts = dict.fromkeys(kinds.values(), 0)
    for node in _read(path).get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            return Precision.INT8
        if node.get_type_name() == "Constant":
            name = node.get_output_element_type(0).to_string()
            if name in kinds:
                counts[kinds[name]] += math.prod(node.get_output_shape(0))
    return max(counts, key=lambda precision: counts[precision])


def tensors(artifact: Artifact, x: Array, names: Sequence[str]) -> tuple[Array, Tensors]:
    """Run an OpenVINO model that gives its modules' tensors as well, with float32 arithmetic.

    A tensor that goes into a quantizer is given as it comes out of it.
    """
    model = _read(artifact.path)
    found = _places(model, names)
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[Precision.FP32],
        "INFERENCE_NUM_THREADS": usable_cpus(),
    }
    with _failing():
        added = model.add_outputs(list(found.values()))
        indices = [model.get_result_index(port) for port in added]
        compiled = ov.Core().compile_model(model, DEVICES[Device.CPU], settings)
        request = compiled.create_infer_request()
        request.infer([x])
        saliency, *shown = [_owned(request, i) for i in (0, *indices)]
    return saliency, dict(zip(found, shown, strict=True))


def _places(model: ov.Model, names: Sequence[str]) -> dict[str, Any]:
    """Find the outputs of nodes that hold modules' outputs: by friendly name, else by tensor's."""
    nodes, by_tensor = {}, {}
    for node in model.get_ordered_ops():
        if node.get_output_size():
            nodes[node.get_friendly_name()] = node.output(0)
            by_tensor.update(dict.fromkeys(node.output(0).get_names(), node.output(0)))
    places = {name: nodes.get(name, by_tensor.get(name)) for name in names}
    return {name: _dequantized(place) for name, place in places.items() if place is not None}


def _dequantized(place: Any) -> Any:
    """Follow an output through the one quantizer that is all that takes it, as in ONNX files.

    One that came from an ONNX file gives whole numbers, and its dequantizer comes in pieces.
    """
    end = _only_user(place, {"FakeQuantize"})
    after = end
    while after is not None:
        end, after = after, _only_user(after, {"Convert", "Subtract", "Multiply"})
    return end if end is not None and end.get_element_type().is_real() else place


def _only_user(place: Any, kinds: set[str]) -> Any:
    users = [port.get_node() for port in place.get_target_inputs()]
    fits = len(users) == 1 and users[0].get_type_name() in kinds
    return users[0].output(0) if fits else None


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
    open=open_runner,
    read_facts=read_facts,
    run_precisions=(Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8),
    options=("batch", "size", "all_outputs", "opset", "quantization"),
    run_options=("streams",),
    companions=(".bin",),
    proof_at_open=(Device.CPU, Device.GPU),
    missing_device=missing_device,
    unfit=unfit,
    stored=stored,
    accepts=accepts,
    tensors=tensors,
    digest_mark=DIGEST_MARK,
)
