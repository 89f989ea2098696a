"""From an ONNX artifact to an `.xml` with its `.bin`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from u2export.backends.openvino.library import VERSION, WEIGHTS_HASH_KEY, error_reason, ov
from u2export.core.artifact import Artifact, converted_facts
from u2export.core.digest import DIGEST_KEY, blank_digest, embed_digest
from u2export.core.facts import FACTS_KEY, Facts
from u2export.core.requests import ExportSpec
from u2export.errors import ExportError
from u2export.system.files import file_sha256

MODEL_INFO_KEY = "model_info"  # where OpenVINO's own tools look for what they show
# OpenVINO copies metadata from an ONNX file, its digest too. This prefix tells the two apart.
OPENVINO_DIGEST_PREFIX = "u2export-openvino-sha256:"
# Operations that dequantize weights, and those next to them.
_UNFOLDED_TYPES = frozenset(
    {"Constant", "Convolution", "Convert", "Subtract", "Multiply", "Result"}
)


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Convert an ONNX artifact to an `.xml` with its `.bin`.

    Args:
        parent: the ONNX artifact.
        spec: the request.
        out: path of the new `.xml`.

    Returns:
        The facts embedded in the `.xml`.

    Raises:
        ExportError: OpenVINO cannot read the ONNX file or write its own files.
    """
    weights_path = out.with_suffix(".bin")
    try:
        model = ov.Core().read_model(parent.path)
        _fold_constants(model)
        _number_unnamed_nodes(model)
        ov.save_model(model, out, compress_to_fp16=False)
        weights_hash = file_sha256(weights_path)
        facts = converted_facts(
            parent, spec, {"openvino": VERSION}, {WEIGHTS_HASH_KEY: weights_hash}
        )
        for key, value in {**facts.readable(), FACTS_KEY: facts.model_dump_json()}.items():
            model.set_rt_info(value, [FACTS_KEY, key])
        for key, value in facts.credits().items():
            model.set_rt_info(value, [MODEL_INFO_KEY, key])
        model.set_rt_info(blank_digest(OPENVINO_DIGEST_PREFIX), [FACTS_KEY, DIGEST_KEY])
        ov.save_model(model, out, compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO {VERSION} cannot convert it: {error_reason(error)}") from error
    if file_sha256(weights_path) != weights_hash:
        raise ExportError("OpenVINO wrote other weights the second time")
    embed_digest(out, OPENVINO_DIGEST_PREFIX)
    return facts


def _fold_constants(model: ov.Model) -> None:
    """Compute constant subgraphs in place, except the dequantizers of quantized weights.

    OpenVINO's pass would turn quantized weights into float32. So for a quantized model it runs on
    a copy. The other operations then get their constants from that copy.
    """
    from openvino.passes import ConstantFolding, Manager

    quantized = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    folded = model.clone() if quantized else model
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(folded)
    if quantized:
        _copy_constants(folded, model)


def _copy_constants(folded: ov.Model, model: ov.Model) -> None:
    """Replace inputs of a model's operations by the constants that its folded copy has there."""
    folded_nodes = {_node_key(node): node for node in folded.get_ops()}
    for node in model.get_ordered_ops():
        folded_node = folded_nodes.get(_node_key(node))
        if folded_node is None or node.get_type_name() in _UNFOLDED_TYPES:
            continue
        for index, port in enumerate(node.inputs()):
            source = folded_node.input_value(index).get_node()
            if source.get_type_name() == "Constant":
                constant = ov.op.Constant(np.array(source.data))
                port.replace_source_output(constant.output(0))


def _node_key(node: ov.Node) -> tuple[str, str]:
    return node.get_friendly_name(), node.get_type_name()


def _number_unnamed_nodes(model: ov.Model) -> None:
    """Number unnamed nodes by their position in the model.

    OpenVINO numbers them by a count of the process, so their names would differ between runs.
    """
    for index, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if kind == "Constant" or re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind.lower()}_{index}")
