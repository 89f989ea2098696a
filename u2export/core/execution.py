"""What a runtime really ran: device and arithmetic of every layer, as the runtime tells."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from u2export.core.enums import Device, Precision
from u2export.core.requests import RunSpec
from u2export.errors import ParityError

UNKNOWN = "unknown"
# Share of the multiply-adds that must be int8 where an int8 file does not say how many are.
DEFAULT_INT8_SHARE = 0.5
_SHARE_TOLERANCE = 0.01  # runtimes count the edges of a layer differently
_MAX_NAMED_LAYERS = 3  # in an error


class Layer(BaseModel):
    """One layer as it was executed.

    Attributes:
        name: of the layer; after the PyTorch module where the runtime kept it.
        kind: the runtime's word for what it does.
        device: `cpu`, `cuda` or the runtime's own name for another one.
        precision: of its arithmetic: a `Precision`, `tf32`, `fp64`, several joined by `+` where it
            mixes them, or `unknown` where the runtime does not tell.
        moves: it only moves, reorders or converts values.
        macs: multiply-adds for one call.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    device: str
    precision: str
    moves: bool = False
    macs: int = 0


class Execution(BaseModel):
    """What ran in one call, as the runtime tells.

    Attributes:
        runtime: name and version.
        device: where it was asked to run.
        stored: the precision of the values in the file; None for a foreign file.
        whole: share of the multiply-adds that the file has in int8; None where it does not say.
        layers: in the order of execution.
    """

    model_config = ConfigDict(frozen=True)

    runtime: str
    device: Device
    stored: Precision | None
    whole: float | None = None
    layers: tuple[Layer, ...]

    @property
    def arithmetic(self) -> tuple[Layer, ...]:
        """The layers that compute."""
        return tuple(layer for layer in self.layers if not layer.moves)

    def share_of_layers(self) -> dict[str, float]:
        """Share of the computing layers by 'precision on device', largest first."""
        return _shares((_precision_on_device(layer), 1) for layer in self.arithmetic)

    def share_of_macs(self) -> dict[str, float]:
        """Share of the multiply-adds by 'precision on device', largest first."""
        return _shares((_precision_on_device(layer), layer.macs) for layer in self.arithmetic)

    def summary(self) -> str:
        """One line, such as `stored fp16, computed fp32 on cpu`."""
        shares = self.share_of_macs() or self.share_of_layers()
        computed = ", ".join(
            name if share > 0.9995 else f"{share:.1%} {name}" for name, share in shares.items()
        )
        return f"stored {self.stored or UNKNOWN}, computed {computed or 'nothing'}"


def int8_shortfall(execution: Execution, run_spec: RunSpec) -> str:
    """Say how little ran in int8 where int8 was asked for; empty where it was enough."""
    if (run_spec.precision or execution.stored) is not Precision.INT8:
        return ""
    total = sum(layer.macs for layer in execution.arithmetic)
    in_int8 = sum(layer.macs for layer in execution.arithmetic if layer.precision == Precision.INT8)
    required = DEFAULT_INT8_SHARE if execution.whole is None else execution.whole
    if not total:  # the runtime counts no multiply-adds: it is only known whether some layer did
        any_int8 = any(layer.precision == Precision.INT8 for layer in execution.arithmetic)
        return "" if any_int8 else "nothing ran in int8"
    if in_int8 / total >= required - _SHARE_TOLERANCE:
        return ""
    return f"{in_int8 / total:.1%} of the multiply-adds ran in int8 where {required:.1%} should"


def unrequested_layers(execution: Execution, run_spec: RunSpec) -> list[Layer]:
    """List the computing layers that ran in another precision, or elsewhere, than was asked."""
    allowed = _allowed_precisions(execution, run_spec)
    return [
        layer
        for layer in execution.arithmetic
        if layer.precision not in allowed or layer.device != run_spec.device
    ]


def _allowed_precisions(execution: Execution, run_spec: RunSpec) -> set[str]:
    """What the layers may compute in.

    Without a demanded precision, that is the artifact's own. A CPU may compute half precision that
    is only stored in float32. Some layers of an int8 file stay in another precision, which
    `int8_shortfall` counts. A foreign file asks for none, but the runtime must tell what it is.
    """
    on_cpu = run_spec.device is Device.CPU
    if run_spec.precision is None and execution.stored is None:
        return set(map(str, Precision))
    requested = run_spec.precision or execution.stored
    allowed = {str(requested)}
    if requested is Precision.INT8:
        allowed |= {str(Precision.FP32), *([] if on_cpu else [str(Precision.FP16)])}
    if run_spec.precision is None and on_cpu and execution.stored is Precision.FP16:
        allowed.add(str(Precision.FP32))
    return allowed


def execution_mismatch(execution: Execution, run_spec: RunSpec, name: str) -> str:
    """Say in a sentence what ran otherwise than asked; empty where all ran as asked.

    A layer whose precision the runtime does not tell is no proof, so it is a mismatch too.

    Args:
        execution: the runtime's record.
        run_spec: the request.
        name: of the artifact, for the sentence.
    """
    wrong = unrequested_layers(execution, run_spec)
    shortfall = int8_shortfall(execution, run_spec)
    precision = run_spec.precision or execution.stored or "what it tells"
    request = f"{name} was asked to compute in {precision} on {run_spec.device}"
    if not execution.arithmetic:
        return f"{request}, but {execution.runtime} tells of no layer that computes"
    if not wrong:
        return f"{request}, but {shortfall} in {execution.runtime}" if shortfall else ""
    named = [f"{layer.name} {_precision_on_device(layer)}" for layer in wrong[:_MAX_NAMED_LAYERS]]
    unnamed = len(wrong) - _MAX_NAMED_LAYERS
    more = f" and {unnamed} more" if unnamed > 0 else ""
    return (
        f"{request}, but {len(wrong)} of {len(execution.arithmetic)} layers did something "
        f"else in {execution.runtime}: {', '.join(named)}{more}"
    )


def check_execution(execution: Execution, run_spec: RunSpec, name: str) -> None:
    """Make sure that what ran is what was asked.

    Args:
        execution: the runtime's record.
        run_spec: the request.
        name: of the artifact, for the sentence.

    Raises:
        ParityError: a layer ran elsewhere or in another precision, the runtime does not tell, or
            nothing computed at all.
    """
    mismatch = execution_mismatch(execution, run_spec, name)
    if mismatch:
        raise ParityError(mismatch)


def _precision_on_device(layer: Layer) -> str:
    return f"{layer.precision} on {layer.device}"


def _shares(weighted: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Share of the total weight by name, largest first; empty where the total is 0."""
    sums: dict[str, int] = {}
    for name, weight in weighted:
        sums[name] = sums.get(name, 0) + weight
    total = sum(sums.values())
    if not total:
        return {}
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return {name: weight / total for name, weight in ordered if weight}
