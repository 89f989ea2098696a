"""ONNX: exported by torch.onnx and our own graph passes, run by onnxruntime."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import onnxruntime as ort

from u2export.artifact import DIGEST_KEY, FACTS_KEY, NO_DIGEST, Artifact, Facts, embed_digest
from u2export.backend import Array, Backend, Runner, facts_for
from u2export.errors import ArtifactError, DependencyError
from u2export.progress import say
from u2export.spec import DEFAULT_OPSET, Device, ExportSpec, Precision

PROVIDERS = {Device.CPU: "CPUExecutionProvider"}
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
    network = checkpoint.network(parent, say, all_outputs=spec.all_outputs)
    model = trace.trace(u2net.fold_batch_norm(network), spec.size, opset)
    model = tidy.simplify(model)
    tidy.resize_by_scales(model)
    tidy.name_after_modules(model)
    tidy.set_batch(model, spec.batch)
    tidy.finish(model, opset)
    if spec.precision is Precision.FP16:
        fp16.to_half(model)
    tools = ("torch", "onnx", "onnxsim", "onnxscript", "u2export")
    facts = facts_for(parent, spec, {name: importlib.metadata.version(name) for name in tools})
    _embed(model, facts)
    onnx.checker.check_model(model, full_check=True)
    out.write_bytes(model.SerializeToString(deterministic=True))
    embed_digest(out)
    return facts


def _embed(model, facts: Facts) -> None:  # type: ignore[no-untyped-def]
    readable = {
        "model": facts.model,
        "weights_sha256": facts.weights.sha256,
        "size": str(facts.size),
        "mean": " ".join(map(str, facts.mean)),
        "std": " ".join(map(str, facts.std)),
        "channels": facts.channels,
        "resize": str(facts.resize),
        "scaling": facts.scaling,
        "output_rule": ("inverted, " if facts.inverted else "") + facts.output_rule,
        "precision": str(facts.precision),
        "licence": facts.licence,
    }
    for key, value in readable.items():
        model.metadata_props.add(key=f"{FACTS_KEY}.{key}", value=value)
    model.metadata_props.add(key=FACTS_KEY, value=facts.model_dump_json())
    model.metadata_props.add(key=DIGEST_KEY, value=NO_DIGEST)


class OnnxRunner(Runner):
    """A model in an onnxruntime session, on exactly one execution provider."""

    def __init__(self, artifact: Artifact, device: Device, threads: int) -> None:
        """Load the file.

        Raises:
            ArtifactError: onnxruntime refuses the file, or it is no U²-Net of the facts' size.
            DependencyError: this onnxruntime has no provider for the device.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        self._session = _session(artifact.path, options, PROVIDERS[device])
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if inputs else []
        size = artifact.facts.size
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
        y: Array = self._session.run([self._output], {self._input: x})[0]
        return np.asarray(y, np.float32)

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        return tuple(np.asarray(y, np.float32) for y in self._session.run(None, {self._input: x}))

    def _release(self) -> None:
        del self._session


def _session(path: Path, options: ort.SessionOptions, provider: str) -> ort.InferenceSession:
    if provider not in ort.get_available_providers():
        raise DependencyError(f"this onnxruntime has no {provider}")
    try:
        return ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"onnxruntime {ort.__version__} refuses {path}: {reason}") from error


def open_runner(artifact: Artifact, device: Device, threads: int) -> Runner:
    """Open an ONNX file on a device."""
    return OnnxRunner(artifact, device, threads)


def read_facts(path: Path) -> str | None:
    """Read the facts embedded in an ONNX file, or None in a foreign one."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    metadata = _session(path, options, PROVIDERS[Device.CPU]).get_modelmeta()
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
    precisions=(Precision.FP32, Precision.FP16),
    devices=(Device.CPU,),
    options=("batch", "size", "all_outputs", "opset"),
    export=export,
    open=open_runner,
    read_facts=read_facts,
)
