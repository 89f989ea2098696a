"""From weights to one ONNX file, in any precision."""

from __future__ import annotations

import copy
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.backends.onnx.session import unoptimized_session
from u2export.core.artifact import Artifact, converted_facts
from u2export.core.digest import DIGEST_KEY, blank_digest, embed_digest
from u2export.core.enums import CALIBRATED, Precision
from u2export.core.facts import FACTS_KEY, INT8_SHARE_KEY, QUANTIZATION_KEY, Facts
from u2export.core.requests import DEFAULT_OPSET, ExportSpec
from u2export.errors import ExportError
from u2export.system.progress import say, track

if TYPE_CHECKING:
    from u2export.quantization.calibration import Calibration


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Write the network as one ONNX file.

    Args:
        parent: the weights.
        spec: the request.
        out: path of the new file.

    Returns:
        The facts embedded in the file.

    Raises:
        ArtifactError: the weights are damaged or do not fit the model.
        ExportError: the exporter or a graph pass failed.
    """
    # Only exporting needs torch and onnx. A machine that only runs artifacts may lack both.
    import onnx

    model, build_facts = _build_graph(parent, spec)
    packages = ("torch", "onnx", "onnxsim", "onnxscript", "u2export")
    versions = {name: importlib.metadata.version(name) for name in packages}
    facts = converted_facts(parent, spec, versions, build_facts)
    _embed_facts(model, facts)
    onnx.checker.check_model(model, full_check=True)
    out.write_bytes(model.SerializeToString(deterministic=True))
    embed_digest(out)
    return facts


def _build_graph(parent: Artifact, spec: ExportSpec):  # type: ignore[no-untyped-def]
    """Trace the network and bring the graph to the requested precision.

    Returns:
        The ONNX model, and what `Facts.build` is to say of it.
    """
    from u2export.network import checkpoint, u2net
    from u2export.onnx_graph import cleanup, fp16, trace

    opset = spec.opset or DEFAULT_OPSET
    calibration = _load_calibration(parent, spec)
    network = checkpoint.load_network(parent, say, all_outputs=spec.all_outputs)
    network = u2net.fold_batch_norm(network)
    if spec.precision is Precision.BF16:
        _round_weights_to_bf16(network, calibration, spec)
    model = trace.trace_network(network, spec.size, opset)
    model = cleanup.simplify(model)
    cleanup.resize_by_scales(model)
    cleanup.name_after_modules(model)
    build_facts: dict[str, str] = {}
    if spec.precision is Precision.INT8:
        model, build_facts = _quantize(network, model, calibration, spec)
    cleanup.set_batch(model, spec.batch)
    cleanup.finalize(model, opset)
    if spec.precision is Precision.FP16:
        fp16.convert_to_half(model)
    return model, build_facts


def _load_calibration(parent: Artifact, spec: ExportSpec) -> Calibration:
    """Load the calibration images; none for a precision that needs none."""
    from u2export.quantization import calibration

    if spec.precision not in CALIBRATED:
        return calibration.Calibration({}, {}, synthetic=False)
    picture = parent.with_facts(size=spec.size).facts.picture
    return calibration.prepare_calibration(spec.calibrated.pictures, picture)


def _round_weights_to_bf16(  # type: ignore[no-untyped-def]
    network, calibration: Calibration, spec: ExportSpec
) -> None:
    """Round a network's weights in place to values that bfloat16 can hold; they stay float32."""
    from u2export.quantization import gptq

    inputs = [*calibration.search_inputs.values(), *calibration.validation_inputs.values()]
    gptq.round_weights_to_bf16(network, inputs, seed=spec.calibrated.seed, track=track)


def _quantize(  # type: ignore[no-untyped-def]
    network, model, calibration: Calibration, spec: ExportSpec
):
    """Quantize a graph to 8 bits.

    Returns:
        The quantized ONNX model, and what `Facts.build` is to say of it.

    Raises:
        ExportError: the masks miss the request, and the request is not for the best effort.
    """
    from u2export.quantization import search

    request = spec.calibrated
    network = copy.deepcopy(network)
    network.all_outputs = False
    layer_search = search.FloatLayerSearch(
        network, model, calibration, request, unoptimized_session, track
    )
    float_layers = layer_search.choose()
    record = layer_search.make_record(float_layers)
    if not record.kept:
        sentence = (
            f"8 bits keep {record.result.description} at best, with {len(float_layers)} layers in "
            f"float32; asked were {request.min_iou:g} and {request.max_mae:g}"
        )
        if not request.best_effort:
            raise ExportError(f"{sentence}: nothing was written; --best-effort writes it")
        say(sentence)
    build_facts = {INT8_SHARE_KEY: f"{record.share:.4f}"}
    build_facts[QUANTIZATION_KEY] = record.model_dump_json()
    return layer_search.quantized_model(float_layers), build_facts


def _embed_facts(model, facts: Facts) -> None:  # type: ignore[no-untyped-def]
    for key, value in facts.credits().items():
        model.metadata_props.add(key=key, value=value)
    for key, value in facts.readable().items():
        model.metadata_props.add(key=f"{FACTS_KEY}.{key}", value=value)
    model.metadata_props.add(key=FACTS_KEY, value=facts.model_dump_json())
    model.metadata_props.add(key=DIGEST_KEY, value=blank_digest())
