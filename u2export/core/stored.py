"""Which precision the weights in a model file have, found in its bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from u2export.core.enums import Precision

# No network comes near these. A small file that goes beyond would keep its reader busy for hours.
MAX_STEPS = 1_000_000  # one takes about a microsecond
MAX_DIMENSIONS, MAX_SIDE = 16, 1 << 40
VALUES_PER_STEP = 256  # that are looked at
INT8_PART = 0.05  # of the weights, which can be half of the multiply-adds
_STRICTEST_FIRST = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.BF16)


@dataclass(frozen=True)
class StoredTensor:
    """Values that a file holds.

    Attributes:
        precision: of their type; 8-bit integers are int8.
        elements: number of values.
        in_bfloat16: they are float32 whose values bfloat16 can hold.
    """

    precision: Precision
    elements: int
    in_bfloat16: bool = False


@dataclass
class Operation:
    """An operation of a file.

    Attributes:
        inputs: names of what it reads: outputs of other operations, or stored tensors.
        computes: it multiplies by weights, as a convolution does.
        passes: it may stand between weights and the layer that reads them.
        rounds: it rounds to 8 bits what it passes on.
    """

    inputs: list[str]
    computes: bool = False
    passes: bool = False
    rounds: bool = False


@dataclass
class StoredGraph:
    """A network as its file holds it.

    Attributes:
        operations: by the names of what they give.
        tensors: what is stored, by name; called when it is needed.
        outputs: names of the outputs that make masks.
        elsewhere: where tensors lie that are not in the file, as it says.
    """

    operations: dict[str, Operation] = field(default_factory=dict)
    tensors: dict[str, Callable[[], StoredTensor]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)


class _Effort:
    """What searching the graph of one file for its weights may take."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise ValueError(f"finding its weights takes more than {MAX_STEPS} steps")


def find_weights(graph: StoredGraph) -> list[StoredTensor]:
    """Find the weights of every layer that the outputs come from.

    Raises:
        ValueError: that takes too long, or a tensor is damaged.
    """
    effort = _Effort()
    reached = _reach(graph, graph.outputs, effort, lambda operation: True)
    layers = {id(graph.operations[name]): graph.operations[name] for name, _ in reached}
    found = [_weights_of(layer, graph, effort) for layer in layers.values() if layer.computes]
    return [tensor for tensor in found if tensor]


def _weights_of(layer: Operation, graph: StoredGraph, effort: _Effort) -> StoredTensor | None:
    """The largest tensor that a layer reads; of those of about its size, the strictest."""
    read = [(name, False) for name in layer.inputs]
    for name, rounded in _reach(graph, layer.inputs, effort, lambda operation: operation.passes):
        operation = graph.operations[name]
        read += [(one, rounded or operation.rounds) for one in operation.inputs]
    stored = []
    for name, rounded in read:
        if name in graph.tensors:
            tensor = graph.tensors[name]()
            effort.spend(1 + tensor.elements // VALUES_PER_STEP)
            stored.append(replace(tensor, precision=Precision.INT8) if rounded else tensor)
    largest = max((tensor.elements for tensor in stored), default=0)
    similar = [tensor for tensor in stored if 2 * tensor.elements >= largest]
    return min(similar, key=lambda one: _STRICTEST_FIRST.index(one.precision), default=None)


def _reach(
    graph: StoredGraph, starts: Iterable[str], effort: _Effort, goes_on: Callable[[Operation], bool]
) -> list[tuple[str, bool]]:
    """Walk from outputs to inputs.

    Returns:
        The names of the operations' outputs that were reached, and whether what they read is
        rounded on its way.
    """
    reached: dict[str, bool] = {}
    names = [(name, False) for name in starts]
    for name, rounded in names:  # grows
        operation = graph.operations.get(name)
        if operation is None or name in reached or not goes_on(operation):
            continue
        effort.spend(1 + len(operation.inputs))
        reached[name] = rounded
        names += [(one, rounded or operation.rounds) for one in operation.inputs]
    return list(reached.items())


def count_elements(shape: Sequence[int]) -> int:
    """Count the values of a tensor.

    Raises:
        ValueError: no tensor has that shape.
    """
    if len(shape) > MAX_DIMENSIONS or not all(0 <= side <= MAX_SIDE for side in shape):
        raise ValueError(f"it holds a tensor of {len(shape)} sides that no memory holds")
    return math.prod(shape)


def possible_precisions(weights: Sequence[StoredTensor]) -> tuple[Precision, ...]:
    """Say which precision the weights in a file have.

    Args:
        weights: of its layers, as `find_weights` gives them.

    Returns:
        The precision of most of them; float32 where there are none, since nothing speaks for less.
        Then others that the file can say of itself: bf16 where bfloat16 can hold all values, and
        int8 where a part is. How much of the arithmetic that is, its runtime tells.
    """
    counts = dict.fromkeys(_STRICTEST_FIRST, 0)
    for tensor in weights:
        counts[tensor.precision] += tensor.elements
    most = max(counts, key=lambda precision: counts[precision])
    others = []
    if most is Precision.FP32 and weights and all(_fits_bfloat16(tensor) for tensor in weights):
        others.append(Precision.BF16)
    if (
        most is not Precision.INT8
        and counts[Precision.INT8] >= INT8_PART * sum(counts.values()) > 0
    ):
        others.append(Precision.INT8)
    return (most, *others)


def _fits_bfloat16(tensor: StoredTensor) -> bool:
    return tensor.in_bfloat16 or tensor.precision is Precision.BF16


def stored_tensor(
    precision: Precision, shape: Sequence[int], values: bytes | memoryview
) -> StoredTensor:
    """Describe values.

    Args:
        precision: of their type.
        shape: of the tensor.
        values: the bytes of its values, little-endian.

    Raises:
        ValueError: no tensor has that shape.
    """
    exact = precision is Precision.FP32 and len(values) > 0 and len(values) % 4 == 0
    in_bfloat16 = exact and _fit_bfloat16(np.frombuffer(values, "<f4"))
    return StoredTensor(precision, count_elements(shape), in_bfloat16)


def _fit_bfloat16(values: NDArray[np.float32]) -> bool:
    """Whether bfloat16 holds these values exactly: the lower half of each is zero."""
    return not (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any()
