"""How a network was brought to 8 bits: what an int8 file tells of itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from u2export.artifact import QUANTIZATION_KEY, Artifact, QuantizationFacts
from u2export.errors import ArtifactError, InputError
from u2export.spec import Quantization


class Point(BaseModel):
    """Masks with so many layers in float32, beside those with all; None where none has a subject.

    Attributes:
        in_float: how many.
        mask_iou: mean over the pictures.
        worst_iou: of the worst picture.
        mask_mae: mean over the pictures, in [0,1].
    """

    model_config = ConfigDict(frozen=True)

    in_float: int
    mask_iou: float | None
    worst_iou: float | None
    mask_mae: float | None

    @property
    def told(self) -> str:
        """In words."""
        if self.mask_iou is None or self.mask_mae is None:
            return "no mask, for no picture has a subject"
        return f"masks to IoU {self.mask_iou:.4f} and mean absolute difference {self.mask_mae:.4f}"


class Account(BaseModel):
    """How a network was brought to 8 bits.

    Attributes:
        searched: sha256 of the pictures that calibrated it and chose the layers.
        judged: sha256 of the pictures that only judged it.
        drawn: the pictures are the bundled drawn ones.
        in_float: convolutions that stay in float32.
        why: the damage foretold of each, as mean squared error of the saliency.
        share: of the multiply-adds that are in whole numbers.
        curve: masks of the pictures it was searched on, by the number of layers in float32.
        result: masks of the pictures that only judged.
        signed: the same in the signed form, which TensorRT takes.
        kept: whether these are as good as was asked.
    """

    model_config = ConfigDict(frozen=True)

    searched: tuple[str, ...]
    judged: tuple[str, ...]
    drawn: bool
    in_float: tuple[str, ...]
    why: dict[str, float]
    share: float
    curve: tuple[Point, ...]
    result: Point
    signed: Point
    kept: bool


def of(artifact: Artifact) -> Account:
    """Read the account that an int8 artifact carries.

    Raises:
        InputError: it carries none.
        ArtifactError: it cannot be read.
    """
    text = artifact.facts.build.get(QUANTIZATION_KEY)
    if text is None:
        raise InputError(f"{artifact.path} was not brought to 8 bits by u2export")
    try:
        return Account.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"what {artifact.path} tells of its 8 bits cannot be read") from error


def keeps(point: Point, asked: Quantization | QuantizationFacts, margin: float = 1.0) -> bool:
    """Whether masks are as good as was asked, using up this share of what is allowed.

    Where no picture has a subject there is nothing to be lost.
    """
    if point.mask_iou is None or point.mask_mae is None:
        return True
    allowed = 1 - asked.min_iou
    return 1 - point.mask_iou <= margin * allowed and point.mask_mae <= margin * asked.max_mae
