"""What a runtime really did: device and arithmetic of every layer, as the runtime itself tells."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from u2export.errors import ParityError
from u2export.spec import Device, Precision, RunSpec

UNKNOWN = "unknown"
MOSTLY = 0.5  # of the multiply-adds, where a file does not say how many are in whole numbers
_ROUNDED = 0.01  # by which a share may be off: runtimes count a layer's edges differently
_SHOWN = 3  # layers named in an error


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


class Executed(BaseModel):
    """The account of one call.

    Attributes:
        runtime: name and version.
        device: where it was asked to run.
        stored: the precision the file's values are stored in; None for a foreign file.
        whole: share of the multiply-adds that an int8 file has in whole numbers; None where it
            does not say.
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
        return _shares((_what(layer), 1) for layer in self.arithmetic)

    def share_of_macs(self) -> dict[str, float]:
        """Share of the multiply-adds by 'precision on device', largest first."""
        return _shares((_what(layer), layer.macs) for layer in self.arithmetic)

    def summary(self) -> str:
        """One line, such as `stored fp16, computed fp32 on cpu`."""
        shares = self.share_of_macs() or self.share_of_layers()
        computed = ", ".join(
            what if share > 0.9995 else f"{share:.1%} {what}" for what, share in shares.items()
        )
        return f"stored {self.stored or UNKNOWN}, computed {computed or 'nothing'}"


def too_few(executed: Executed, asked: RunSpec) -> str:
    """Say how little was in whole numbers where int8 was asked for; nothing where it was enough."""
    if (asked.precision or executed.stored) is not Precision.INT8:
        return ""
    total = sum(layer.macs for layer in executed.arithmetic)
    whole = sum(layer.macs for layer in executed.arithmetic if layer.precision == Precision.INT8)
    least = MOSTLY if executed.whole is None else executed.whole
    if not total:  # a runtime that tells no amounts: then it is known only that some did
        some = any(layer.precision == Precision.INT8 for layer in executed.arithmetic)
        return "" if some else "nothing ran in int8"
    if whole / total >= least - _ROUNDED:
        return ""
    return f"{whole / total:.1%} of the multiply-adds ran in int8 where {least:.1%} should"


def unasked(executed: Executed, asked: RunSpec) -> list[Layer]:
    """List the computing layers that did something else than was asked.

    Without a demanded precision the artifact's own is asked for; half precision that is only
    stored may be computed in float32 on a CPU, as runtimes do there. A foreign file asks for none,
    but what it computes in must still be told.
    """
    able = {str(asked.precision or executed.stored)}
    if str(Precision.INT8) in able:  # some layers of such a file stay as they were; see `too_few`
        able |= {
            str(Precision.FP32),
            *([] if asked.device is Device.CPU else [str(Precision.FP16)]),
        }
    only_stored = asked.precision is None and asked.device is Device.CPU
    if only_stored and executed.stored is Precision.FP16:
        able.add(str(Precision.FP32))
    if asked.precision is None and executed.stored is None:
        able = set(map(str, Precision))
    return [
        layer
        for layer in executed.arithmetic
        if layer.precision not in able or layer.device != asked.device
    ]


def complaint(executed: Executed, asked: RunSpec, name: str) -> str:
    """Say in a sentence what ran otherwise than asked; nothing where all did as asked.

    A layer whose precision the runtime does not tell is no proof, and so is complained of too.

    Args:
        executed: the runtime's account.
        asked: the request.
        name: of the artifact, for the sentence.
    """
    wrong, lacking = unasked(executed, asked), too_few(executed, asked)
    precision = asked.precision or executed.stored or "what it tells"
    request = f"{name} was asked to compute in {precision} on {asked.device}"
    if not executed.arithmetic:
        return f"{request}, but {executed.runtime} tells of no layer that computes"
    if not wrong:
        return f"{request}, but {lacking} in {executed.runtime}" if lacking else ""
    some = ", ".join(f"{layer.name} {_what(layer)}" for layer in wrong[:_SHOWN])
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return (
        f"{request}, but {len(wrong)} of {len(executed.arithmetic)} layers did something "
        f"else in {executed.runtime}: {some}{more}"
    )


def check(executed: Executed, asked: RunSpec, name: str) -> None:
    """Make sure that what ran is what was asked.

    Args:
        executed: the runtime's account.
        asked: the request.
        name: of the artifact, for the sentence.

    Raises:
        ParityError: a layer ran elsewhere or in another precision, the runtime does not tell, or
            nothing computed at all.
    """
    found = complaint(executed, asked, name)
    if found:
        raise ParityError(found)


def _what(layer: Layer) -> str:
    return f"{layer.precision} on {layer.device}"


def _shares(weighted: Iterable[tuple[str, int]]) -> dict[str, float]:
    sums: dict[str, int] = {}
    for what, weight in weighted:
        sums[what] = sums.get(what, 0) + weight
    total = sum(sums.values())
    if not total:
        return {}
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return {what: weight / total for what, weight in ordered if weight}
