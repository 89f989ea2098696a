"""ONNX: exported by torch.onnx and our own graph passes, run by onnxruntime."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from u2export import flow
from u2export.artifact import (
    DIGEST_KEY,
    FACTS_KEY,
    INT8_SHARE_KEY,
    QUANTIZATION_KEY,
    Artifact,
    Facts,
    embed_digest,
    no_digest,
)
from u2export.backend import Array, Backend, Runner, Tensors, facts_for
from u2export.errors import ArtifactError, DependencyError, ExportError
from u2export.executed import UNKNOWN, Executed, Layer
from u2export.machine import cuda, usable_cpus
from u2export.progress import say, tracked
from u2export.spec import (
    CALIBRATED,
    DEFAULT_OPSET,
    Device,
    ExportSpec,
    Precision,
    RunSpec,
)

if TYPE_CHECKING:  # only exporting needs it
    from u2export.quant.calibration import Calibration

PROVIDERS = {Device.CPU: "CPUExecutionProvider", Device.CUDA: "CUDAExecutionProvider"}
DEVICES = {provider: str(device) for device, provider in PROVIDERS.items()}
# float32 on CUDA means float32: by default convolutions would run in TF32.
PROVIDER_OPTIONS = {Device.CUDA: {"use_tf32": "0"}}
NAMES = {
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "double": "fp64",
    "int8": "int8",
    "uint8": "int8",
}
# Kernels that move, convert or reorder values and compute nothing.
MOVES = frozenset(
    {"Cast", "Concat", "DequantizeLinear", "Identity", "MemcpyFromHost", "MemcpyToHost"}
    | {"QLinearConcat", "QuantizeLinear", "ReorderInput"}
    | {"ReorderOutput", "Reshape", "Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Gather"}
)
_TAPS = 9  # of a quantized convolution, whose weights the profiler does not tell: all are 3x3
_ERRORS_ONLY = 3  # onnxruntime's log severity


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Write the network as one ONNX file.

    Raises:
        ArtifactError: the weights are damaged or do not fit.
        ExportError: the exporter or a pass over the graph failed.
    """
    # Only exporting needs torch and onnx: a machine that runs artifacts has neither.
    import onnx

    from u2export import checkpoint, u2net
    from u2export.graph import fp16, tidy, trace

    opset = spec.opset or DEFAULT_OPSET
    pictures = _calibration(parent, spec)
    network = checkpoint.network(parent, say, all_outputs=spec.all_outputs)
    network = u2net.fold_batch_norm(network)
    if spec.precision is Precision.BF16:
        _to_brain_floats(network, pictures, spec)
    model = trace.trace(network, spec.size, opset)
    model = tidy.simplify(model)
    tidy.resize_by_scales(model)
    tidy.name_after_modules(model)
    build: dict[str, str] = {}
    if spec.precision is Precision.INT8:
        network = copy.deepcopy(network)
        network.all_outputs = False
        model, build = _in_whole_numbers(network, model, pictures, spec)
    tidy.set_batch(model, spec.batch)
    tidy.finish(model, opset)
    if spec.precision is Precision.FP16:
        fp16.to_half(model)
    tools = ("torch", "onnx", "onnxsim", "onnxscript", "u2export")
    versions = {name: importlib.metadata.version(name) for name in tools}
    facts = facts_for(parent, spec, versions, build)
    _embed(model, facts)
    onnx.checker.check_model(model, full_check=True)
    out.write_bytes(model.SerializeToString(deterministic=True))
    embed_digest(out)
    return facts


def _calibration(parent: Artifact, spec: ExportSpec) -> Calibration:
    """The pictures that precisions are calibrated with; none for the others."""
    from u2export.quant import calibration

    if spec.precision not in CALIBRATED:
        return calibration.Calibration({}, {}, drawn=False)
    picture = parent.with_facts(size=spec.size).facts.picture
    return calibration.prepare(spec.calibrated.pictures, picture)


def _to_brain_floats(  # type: ignore[no-untyped-def]
    network, pictures: Calibration, spec: ExportSpec
) -> None:
    """Round a network's weights to what bfloat16 can hold, in place; they stay float32 values."""
    from u2export.quant import rounding

    inputs = [*pictures.searched.values(), *pictures.judged.values()]
    rounding.brain_floats(network, inputs, seed=spec.calibrated.seed, track=tracked)


def _in_whole_numbers(  # type: ignore[no-untyped-def]
    network, model, pictures: Calibration, spec: ExportSpec
):
    """The graph in 8 bits, and what is to be told of it."""
    from u2export.quant import search

    asked = spec.calibrated
    found = search.Search(network, model, pictures, asked, _as_written, tracked)
    chosen = found.choose()
    account = found.account(chosen)
    if not account.kept:
        sentence = (
            f"8 bits keep {account.result.told} at best, with {len(chosen)} layers in float32; "
            f"asked were {asked.min_iou:g} and {asked.max_mae:g}"
        )
        if not asked.best_effort:
            raise ExportError(f"{sentence}: nothing was written; --best-effort writes it")
        say(sentence)
    notes = {INT8_SHARE_KEY: f"{account.share:.4f}", QUANTIZATION_KEY: account.model_dump_json()}
    return found.written(chosen), notes


def _as_written(model) -> Callable[..., Sequence[Array]]:  # type: ignore[no-untyped-def]
    """A model in memory, to be called; every node computes what the graph says and nothing else."""
    options = _options(RunSpec(Device.CPU, usable_cpus()))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=[PROVIDERS[Device.CPU]]
    )
    name = session.get_inputs()[0].name

    def call(x: Array, outputs: list[str] | None = None) -> Sequence[Array]:
        results: Sequence[Array] = session.run(outputs, {name: x})
        return results

    return call


def _embed(model, facts: Facts) -> None:  # type: ignore[no-untyped-def]
    for key, value in facts.readable().items():
        model.metadata_props.add(key=f"{FACTS_KEY}.{key}", value=value)
    model.metadata_props.add(key=FACTS_KEY, value=facts.model_dump_json())
    model.metadata_props.add(key=DIGEST_KEY, value=no_digest())


class OnnxRunner(Runner):
    """A model in an onnxruntime session, on exactly one execution provider."""

    def __init__(self, artifact: Artifact, asked: RunSpec) -> None:
        """Load the file.

        Raises:
            ArtifactError: onnxruntime refuses the file, or it is no U²-Net of the facts' size.
            DependencyError: onnxruntime fell back to another provider than the device's.
        """
        self._asked, self._stored, self._whole = asked, artifact.stored, artifact.int8_share
        if self._stored is Precision.BF16:
            self._stored = Precision.FP32  # values that bfloat16 can hold, kept as float32
        self._path = artifact.path
        self._session = _session(artifact.path, _options(asked), asked.device)
        self._free = BoundedSemaphore(_calls(asked))
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if inputs else []
        size = artifact.facts.size
        if inputs and inputs[0].type != "tensor(float)":
            raise ArtifactError(f"{artifact.path} takes {inputs[0].type}; it must take float32")
        fits = len(inputs) == 1 and len(shape) == 4 and shape[1] == 3
        if not fits or any(isinstance(n, int) and n != size for n in shape[2:]):
            raise ArtifactError(
                f"{artifact.path} takes {[i.shape for i in inputs]}, not pictures of "
                f"3x{size}x{size}: it is not a {artifact.facts.model}"
            )
        self._input = inputs[0].name
        self._output = self._session.get_outputs()[0].name
        super().__init__(size, shape[0] if isinstance(shape[0], int) else None)

    def _infer(self, x: Array) -> Array:
        return self._outputs([self._output], x)[0]

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        return self._outputs(None, x)

    def stream(self, inputs: Iterable[Array]) -> Iterator[Array]:
        """Compute many inputs, as many at once as the runner was opened for."""
        own = (np.array(x, order="C") for x in inputs)  # the caller may fill x again at once
        yield from flow.in_order(self, own, self._asked.streams)

    def _outputs(self, names: list[str] | None, x: Array) -> tuple[Array, ...]:
        try:
            with self._free:
                found = self._session.run(names, {self._input: x})
        except Exception as error:  # onnxruntime's exceptions share no public base
            reason = str(error).splitlines()[0]
            raise ExportError(f"onnxruntime {ort.__version__} failed: {reason}") from error
        return tuple(np.asarray(y, np.float32) for y in found)

    def _executed(self) -> Executed:
        """Load the file once more with onnxruntime's profiler, run it once, and read its notes.

        The profiler names every kernel that ran, after all optimisation, with the types it was
        given and the provider that ran it.
        """
        x = np.zeros((self.fewest, 3, self.size, self.size), np.float32)
        with tempfile.TemporaryDirectory(prefix="u2export-") as folder:
            options = _options(self._asked)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "kernels")
            session = _session(self._path, options, self._asked.device)
            session.run(None, {self._input: x})
            events = json.loads(Path(session.end_profiling()).read_text())
        kernels = [e for e in events if e.get("cat") == "Node" and "op_name" in e["args"]]
        return Executed(
            runtime=f"onnxruntime {ort.__version__}",
            device=self._asked.device,
            stored=self._stored,
            whole=self._whole,
            layers=tuple(_layer(e["name"], e["args"]) for e in kernels if _ran(e["name"])),
        )

    def _release(self) -> None:
        del self._session


def _calls(asked: RunSpec) -> int:
    """How many calls compute at once; others wait.

    There are two threads for each where there are so many: two calls on two cores take as long one
    after the other as side by side, and half the memory (benchmarks/runner_memory.py).
    """
    return max(1, min(asked.streams, asked.threads // 2))


def _ran(name: str) -> bool:
    return name.endswith("_kernel_time")


def _layer(name: str, notes: dict[str, Any]) -> Layer:
    kind, provider = notes["op_name"], notes["provider"]
    inputs = [next(iter(one.items())) for one in notes["input_type_shape"] if one]
    outputs = [next(iter(one.items())) for one in notes["output_type_shape"] if one]
    types = [name for name, _ in (*inputs, *outputs)]
    precisions = [NAMES[name] for name in types if name in NAMES]
    macs = 0
    if kind == "QLinearConv" and outputs:
        macs = _TAPS * _channels(inputs, outputs[0][1]) * math.prod(outputs[0][1])
    elif "Conv" in kind and len(inputs) > 1 and outputs:
        macs = math.prod(inputs[1][1][1:]) * math.prod(outputs[0][1])
    return Layer(
        name=name.removesuffix("_kernel_time"),
        kind=kind,
        device=DEVICES.get(provider, provider),
        precision=precisions[0] if precisions else UNKNOWN,
        moves=kind in MOVES or (bool(types) and not precisions),  # such as shapes' whole numbers
        macs=macs,
    )


def _channels(inputs: list[tuple[str, list[int]]], output: list[int]) -> int:
    """What a quantized convolution takes, which lies where its output has one for each scale."""
    scales = [shape[0] for kind, shape in inputs if kind == "float" and len(shape) == 1]
    last = not scales or output[-1] == scales[0]
    return inputs[0][1][-1 if last else 1]


def _options(asked: RunSpec) -> ort.SessionOptions:
    options = ort.SessionOptions()
    # of a pool that all calls share, to which each adds the thread that it comes from
    options.intra_op_num_threads = max(1, asked.threads - _calls(asked) + 1)
    if asked.streams > 1:  # others have use for a thread that would wait busily
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = 1
    # its plan of all buffers, made at the first call, doubles the memory (382 against 193 MB for
    # u2netp) and saves no time (214 against 213 ms): benchmarks/runner_memory.py
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    return options


def _session(path: Path, options: ort.SessionOptions, device: Device) -> ort.InferenceSession:
    provider = PROVIDERS[device]
    if device is Device.CUDA and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # those of the packages nvidia-*, where these are installed
    settings = PROVIDER_OPTIONS.get(device, {})
    try:
        session = ort.InferenceSession(str(path), options, providers=[(provider, settings)])
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = str(error).splitlines()[0]
        if device is not Device.CPU:
            _session(path, options, Device.CPU)  # raises if it is the file that is at fault
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


def open_runner(artifact: Artifact, asked: RunSpec) -> Runner:
    """Open an ONNX file on a device."""
    return OnnxRunner(artifact, asked)


def missing_device(device: Device) -> str:
    """Say why this onnxruntime cannot run on a device here."""
    if PROVIDERS[device] not in ort.get_available_providers():
        return (
            f"onnxruntime {ort.__version__} as installed has no {PROVIDERS[device]}: "
            "pip uninstall onnxruntime && pip install 'u2export[onnxruntime-gpu]'"
        )
    return cuda().reason if device is Device.CUDA else ""


def stored(path: Path) -> Precision:
    """Tell the precision most of a file's values have."""
    import onnx

    kinds = {onnx.TensorProto.FLOAT: Precision.FP32, onnx.TensorProto.FLOAT16: Precision.FP16}
    kinds[onnx.TensorProto.BFLOAT16] = Precision.BF16
    kinds |= dict.fromkeys((onnx.TensorProto.INT8, onnx.TensorProto.UINT8), Precision.INT8)
    counts = dict.fromkeys(kinds.values(), 0)
    for item in onnx.load(path, load_external_data=False).graph.initializer:
        if item.data_type in kinds:
            counts[kinds[item.data_type]] += math.prod(item.dims)
    return max(counts, key=lambda precision: counts[precision])


def accepts(model: bytes) -> object:
    """Load an ONNX model that is in memory."""
    return ort.InferenceSession(
        model, _options(RunSpec(Device.CPU, 1)), providers=[PROVIDERS[Device.CPU]]
    )


def tensors(artifact: Artifact, x: Array, names: Sequence[str]) -> tuple[Array, Tensors]:
    """Run a copy of an ONNX file that gives its modules' tensors as well.

    Graph optimisation is off. A fused graph has no such tensors: onnxruntime makes one kernel of
    convolution and ReLU, and of quantized operations with what is around them. Asked for the
    tensors, it would leave those operations apart, so that some were optimised and some not; off,
    every node computes what the file says and nothing else.
    """
    import onnx

    from u2export.graph.marked import mark

    try:
        model = onnx.load(artifact.path)
    except Exception as error:  # protobuf's exceptions are not public, and a file may have others
        raise ArtifactError(f"{artifact.path} cannot be read as ONNX: {error}") from error
    first = model.graph.output[0].name
    found = mark(model, names)
    try:
        results = _as_written(model)(x, [first, *found.values()])
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = str(error).splitlines()[0]
        raise ExportError(f"onnxruntime {ort.__version__} failed: {reason}") from error
    saliency, *shown = [np.asarray(y, np.float32) for y in results]
    return saliency, dict(zip(found, shown, strict=True))


def read_facts(path: Path) -> str | None:
    """Read the facts embedded in an ONNX file, or None in a foreign one."""
    options = _options(RunSpec(Device.CPU, 1))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    metadata = _session(path, options, Device.CPU).get_modelmeta()
    text: str | None = metadata.custom_metadata_map.get(FACTS_KEY)
    return text


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
    open=open_runner,
    read_facts=read_facts,
    run_precisions=(Precision.FP32, Precision.FP16, Precision.INT8),
    options=("batch", "size", "all_outputs", "opset", "quantization"),
    run_options=("streams",),
    proof_at_open=(Device.CUDA,),
    missing_device=missing_device,
    stored=stored,
    accepts=accepts,
    tensors=tensors,
)
