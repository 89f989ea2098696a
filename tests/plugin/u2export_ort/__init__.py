"""onnxruntime's own file format, `.ort`, which its minimal builds for phones read."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort

from u2export.artifact import DIGEST_KEY, FACTS_KEY, Artifact, Facts, embed_digest, no_digest
from u2export.backend import Backend, facts_for
from u2export.backends.onnx import missing_device, open_runner, read_facts
from u2export.spec import Device, ExportSpec, Precision


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Let onnxruntime write the network as it would be after its portable optimisations."""
    facts = facts_for(parent, spec, {"onnxruntime": ort.__version__})
    model = onnx.load(parent.path)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    kept |= {FACTS_KEY: facts.model_dump_json(), DIGEST_KEY: no_digest()}
    onnx.helper.set_model_props(model, kept)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    embed_digest(out)
    return facts


BACKEND = Backend(
    name="ort",
    suffixes=(".ort",),
    parent="onnx",
    run_packages=("onnxruntime",),
    export_packages=("onnx", "onnxruntime"),
    run_extra="onnxruntime",
    export_extra="export",
    precisions=(Precision.FP32,),
    devices=(Device.CPU,),
    export=export,
    open=open_runner,
    read_facts=read_facts,
    options=("batch", "size"),
    missing_device=missing_device,
)
