"""The record of how a network was quantized to int8. Every int8 artifact carries one."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from u2export.core.artifact import Artifact
from u2export.core.facts import QUANTIZATION_KEY, QuantizationFacts
from u2export.core.requests import Quantization
from u2export.errors import ArtifactError, InputError
from u2export.system.documents import first_line, parse_model


class MaskQuality(BaseModel):
    """Masks of the int8 network compared with the float32 network's.

    The figures are None where no picture has a subject.

    Attributes:
        in_float: number of layers that stay in float32.
        mask_iou: mean IoU over the pictures.
        worst_iou: IoU of the worst picture.
        mask_mae: mean absolute difference over the pictures, in [0,1].
    """

    model_config = ConfigDict(frozen=True)

    in_float: int
    mask_iou: float | None
    worst_iou: float | None
    mask_mae: float | None

    @property
    def description(self) -> str:
        """The figures as a phrase."""
        if self.mask_iou is None or self.mask_mae is None:
            return "no mask, for no picture has a subject"
        return f"masks to IoU {self.mask_iou:.4f} and mean absolute difference {self.mask_mae:.4f}"


class Int8Record(BaseModel):
    """How a network was quantized to int8.

    Attributes:
        searched: sha256 of the calibration pictures. They also choose the layers.
        judged: sha256 of the validation pictures. They only measure the result.
        drawn: the pictures are the synthetic ones that u2export draws.
        in_float: convolutions that stay in float32.
        why: predicted error of each convolution, as mean squared error of the saliency.
        share: share of the multiply-adds that are in int8.
        curve: masks of the calibration pictures, by the number of layers in float32.
        result: masks of the validation pictures.
        signed: the same in the signed form, which TensorRT takes.
        kept: the result is as good as the request demands.
    """

    model_config = ConfigDict(frozen=True)

    searched: tuple[str, ...]
    judged: tuple[str, ...]
    drawn: bool
    in_float: tuple[str, ...]
    why: dict[str, float]
    share: float
    curve: tuple[MaskQuality, ...]
    result: MaskQuality
    signed: MaskQuality
    kept: bool


def read_int8_record(artifact: Artifact) -> Int8Record:
    """Read the record that an int8 artifact carries.

    Raises:
        InputError: the artifact carries none.
        ArtifactError: the record cannot be parsed.
    """
    text = artifact.facts.build.get(QUANTIZATION_KEY)
    if text is None:
        raise InputError(f"{artifact.path} was not brought to 8 bits by u2export")
    try:
        return parse_model(text, Int8Record)
    except ValueError as error:
        raise ArtifactError(
            f"what {artifact.path} tells of its 8 bits cannot be read: {first_line(error)}"
        ) from error


def meets_request(
    quality: MaskQuality, request: Quantization | QuantizationFacts, margin: float = 1.0
) -> bool:
    """Check whether masks are as good as the request demands.

    Args:
        quality: what was measured.
        request: holds the lowest IoU and the largest mean absolute difference.
        margin: share of the allowed loss that may be used, in [0,1].

    Returns:
        The verdict. It is true where no picture has a subject: there is nothing to lose.
    """
    if quality.mask_iou is None or quality.mask_mae is None:
        return True
    allowed_loss = 1 - request.min_iou
    return (
        1 - quality.mask_iou <= margin * allowed_loss
        and quality.mask_mae <= margin * request.max_mae
    )
