"""What an OpenVINO model says of itself and how it stores its weights, read without OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from u2export.backends.openvino.library import WEIGHTS_HASH_KEY, require_weights
from u2export.core.enums import Precision
from u2export.core.facts import FACTS_KEY, parse_facts
from u2export.core.stored import (
    BYTES_PER_STEP,
    Effort,
    StoredTensor,
    count_elements,
    fit_bfloat16,
    possible_precisions,
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
# Operations between stored weights and the layer that reads them.
_PASSING = frozenset(
    {"Add", "Convert", "FakeQuantize", "Multiply", "Reshape", "Subtract", "Transpose"}
)


@dataclass
class _Layer:
    """A layer of the file.

    Attributes:
        kind: its type.
        data: its attributes.
        inputs: the identities of the layers that it reads.
    """

    kind: str
    data: dict[str, str]
    inputs: list[str] = field(default_factory=list)


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
    """Find the precisions that describe most weights in a file, the strictest first.

    Raises:
        ArtifactError: the file is damaged, or its `.bin` is missing.
    """
    require_weights(path)
    layers = _read_layers(_read_xml(path))
    try:
        with open_regular(path.with_suffix(".bin")) as file:
            content = memoryview(file.read())
        return possible_precisions(_weights(layers, content))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


def _weights(layers: dict[str, _Layer], content: memoryview) -> Iterator[StoredTensor]:
    """The weights of each layer that computes: the largest constant that it reads."""
    effort = Effort()
    for layer in layers.values():
        if layer.kind in _COMPUTING:
            stored = list(_constants(layer, layers, content, effort))
            if stored:
                yield max(stored, key=lambda tensor: tensor.elements)


def _constants(
    layer: _Layer, layers: dict[str, _Layer], content: memoryview, effort: Effort
) -> Iterator[StoredTensor]:
    """The constants that a layer reads, through operations that pass them on."""
    names = [(name, False) for name in layer.inputs]
    seen = set(layer.inputs)
    for name, rounded in names:  # grows
        source = layers.get(name)
        if source is None:
            continue
        effort.spend(1 + len(source.inputs))
        if source.kind == "Const" and source.data.get("element_type") in _PRECISIONS:
            effort.spend(int(source.data.get("size", "0")) // BYTES_PER_STEP)
            yield _stored_tensor(source.data, content, rounded=rounded)
        elif source.kind in _PASSING:
            rounds = rounded or _rounds_to_int8(source)
            names += [(one, rounds) for one in source.inputs if one not in seen]
            seen.update(source.inputs)


def _rounds_to_int8(layer: _Layer) -> bool:
    return layer.kind == "FakeQuantize" and int(layer.data.get("levels", "0")) <= _INT8_LEVELS


def _stored_tensor(data: dict[str, str], content: memoryview, *, rounded: bool) -> StoredTensor:
    shape = [int(side) for side in data.get("shape", "").split(",") if side.strip()]
    start, size = int(data.get("offset", "0")), int(data.get("size", "0"))
    if not 0 <= start <= start + size <= len(content):
        raise ValueError("a constant lies outside of its .bin")
    precision = Precision.INT8 if rounded else _PRECISIONS[data["element_type"]]
    values = content[start : start + size]
    exact = precision is Precision.FP32 and size > 0 and size % 4 == 0
    in_bfloat16 = exact and fit_bfloat16(np.frombuffer(values, "<f4"))
    return StoredTensor(precision, count_elements(shape), in_bfloat16)


def _read_layers(document: ElementTree.Element) -> dict[str, _Layer]:
    layers = {}
    for element in document.iterfind("layers/layer"):
        data = element.find("data")
        attributes = {} if data is None else dict(data.attrib)
        layers[element.get("id", "")] = _Layer(element.get("type", ""), attributes)
    for edge in document.iterfind("edges/edge"):
        target = layers.get(edge.get("to-layer", ""))
        if target:
            target.inputs.append(edge.get("from-layer", ""))
    return layers


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(read_bounded(path))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as OpenVINO's XML: {error}") from error
