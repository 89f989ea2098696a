"""What a model file takes and gives, as its runtime tells, and whether that is a U²-Net's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from u2export.core.artifact import Artifact
from u2export.core.facts import MAX_OUTPUTS
from u2export.core.requests import MAX_BATCH
from u2export.errors import ArtifactError


@dataclass(frozen=True)
class Port:
    """An input or an output of a model file.

    Attributes:
        kind: the runtime's name of its type.
        shape: None where a side is free; None in all where even their number is.
        real: its values are real numbers that NumPy has.
        single: they are float32.
    """

    kind: str
    shape: tuple[int | None, ...] | None
    real: bool = True
    single: bool = True


def check_ports(artifact: Artifact, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Refuse a file that does not take float32 (N,3,size,size) and give (N,1,size,size).

    What it declares decides how much memory it takes, so this comes before anything is computed.
    Only the first output is a mask: others may have any shape.

    Raises:
        ArtifactError: it takes or gives something else, too much at once, or too many outputs.
    """
    path, size = artifact.path, artifact.facts.size
    if inputs and not inputs[0].single:
        raise ArtifactError(f"{path} takes {inputs[0].kind}; it must take float32")
    if len(inputs) != 1 or not _fits(inputs[0], (3, size, size)):
        raise ArtifactError(
            f"{path} takes {' and '.join(map(_text, inputs)) or 'nothing'}, not pictures of "
            f"3x{size}x{size}: it is not a {artifact.facts.model}"
        )
    batch = inputs[0].shape[0] if inputs[0].shape else None
    if batch is not None and not 1 <= batch <= MAX_BATCH:
        raise ArtifactError(f"{path} takes {batch} pictures per call: 1 to {MAX_BATCH} can be")
    unlike = next((port.kind for port in outputs if not port.real), "")
    if unlike:
        raise ArtifactError(f"{path} gives {unlike}; it must give real numbers")
    if not 1 <= len(outputs) <= MAX_OUTPUTS:
        raise ArtifactError(f"{path} gives {len(outputs)} outputs: 1 to {MAX_OUTPUTS} can be")
    if not _fits(outputs[0], (1, size, size)):
        raise ArtifactError(
            f"{path} gives {_text(outputs[0])}, not a map of 1x{size}x{size} for each picture: it "
            f"is not a {artifact.facts.model}"
        )


def _fits(port: Port, expected: tuple[int, ...]) -> bool:
    """Whether a port can have this shape after its batch."""
    if port.shape is None:
        return True
    sides = port.shape[1:]
    return len(sides) == len(expected) and all(
        side in (None, known) for side, known in zip(sides, expected, strict=True)
    )


def _text(port: Port) -> str:
    if port.shape is None:
        return "any shape"
    return "x".join("N" if side is None else str(side) for side in port.shape)
