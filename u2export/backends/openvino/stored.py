"""What an OpenVINO model says of itself and how it stores its weights, read without OpenVINO."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from u2export.backends.openvino.library import WEIGHTS_HASH_KEY, require_weights
from u2export.core.enums import Precision
from u2export.core.facts import FACTS_KEY, parse_facts
from u2export.core.stored import (
    Operation,
    StoredGraph,
    StoredTensor,
    find_weights,
    possible_precisions,
    stored_tensor,
)
from u2export.errors import ArtifactError
from u2export.system.documents import open_regular, read_bounded
from u2export.system.files import file_sha256

_PRECISIONS = {
    "f32": Precision.FP32,
    "f16": Precision.FP16,
    "bf16": Precision.BF16,
    "i8": Precision.INT8,
    "u8": Precision.INT8,
}
_COMPUTING = frozenset({"Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul"})
_INT8_LEVELS = 256
_RANDOM = frozenset({"Multinomial", "RandomUniform"})
# Operations between stored weights and the layer that reads them.
_PASSING = frozenset(
    {"Add", "Convert", "FakeQuantize", "Multiply", "Reshape", "Subtract", "Transpose"}
)


def read_facts(path: Path) -> str | None:
    """Read the facts in a model's `rt_info`.

    Returns:
        Their text; None for a foreign file.

    Raises:
        ArtifactError: the `.bin` is missing, or is not the one the `.xml` was written with; or the
            `.xml` is damaged, or holds facts twice.
    """
    require_weights(path)
    found = _read_xml(path).findall(f"rt_info/{FACTS_KEY}/{FACTS_KEY}")
    if len(found) > 1:
        raise ArtifactError(f"{path} holds its facts {len(found)} times: export it again")
    text = found[0].get("value") if found else None
    if text is None:
        return None
    weights_path = path.with_suffix(".bin")
    expected_hash = parse_facts(text, path).build.get(WEIGHTS_HASH_KEY)
    if file_sha256(weights_path) != expected_hash:
        raise ArtifactError(f"{weights_path} does not belong to {path.name}: export it again")
    return text


def stored_precisions(path: Path) -> tuple[Precision, ...]:
    """Find the precisions that describe most weights in a file: see `possible_precisions`.

    Raises:
        ArtifactError: the file is damaged, its `.bin` is missing, or it takes too long to read.
    """
    require_weights(path)
    document = _read_xml(path)
    try:
        with open_regular(path.with_suffix(".bin")) as file:
            content = memoryview(file.read())
        return possible_precisions(find_weights(_read_graph(document, content)))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


def _read_graph(document: ElementTree.Element, content: memoryview) -> StoredGraph:
    graph = StoredGraph()
    for element in document.iterfind("layers/layer"):
        name, kind, data = element.get("id", ""), element.get("type", ""), element.find("data")
        attributes = {} if data is None else data.attrib
        if kind == "Const":
            if attributes.get("element_type") in _PRECISIONS:
                graph.tensors[name] = functools.cache(partial(_constant, attributes, content))
            continue
        if kind in _RANDOM:
            raise ValueError(f"{kind} draws random numbers: no check holds for the next call")
        rounds = kind == "FakeQuantize" and int(attributes.get("levels", "0")) <= _INT8_LEVELS
        graph.operations[name] = Operation([], kind in _COMPUTING, kind in _PASSING, rounds)
        graph.outputs += [name] if kind == "Result" else []
    for edge in document.iterfind("edges/edge"):
        target = graph.operations.get(edge.get("to-layer", ""))
        if target:
            target.inputs.append(edge.get("from-layer", ""))
    return graph


def _constant(data: dict[str, str], content: memoryview) -> StoredTensor:
    shape = [int(side) for side in data.get("shape", "").split(",") if side.strip()]
    start, size = int(data.get("offset", "0")), int(data.get("size", "0"))
    if not 0 <= start <= start + size <= len(content):
        raise ValueError("a constant lies outside of its .bin")
    return stored_tensor(_PRECISIONS[data["element_type"]], shape, content[start : start + size])


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(read_bounded(path))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as OpenVINO's XML: {error}") from error
