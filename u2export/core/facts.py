"""What a model file says of itself: weights, preprocessing, precision, tools."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from u2export.core.enums import Architecture, Precision, Resize, Task
from u2export.core.models import ModelSpec, PictureSpec
from u2export.core.requests import MAX_BATCH
from u2export.errors import ArtifactError
from u2export.system.documents import first_line, parse_json, parse_model

SCHEMA = 1
# More would not fit into memory: pixels of the input's side, and outputs.
MAX_FACTS_SIZE, MAX_OUTPUTS = 8192, 64
FACTS_KEY = "u2export"
# Of `Facts.build`, for int8: the share of multiply-adds in int8, and the record of the search.
INT8_SHARE_KEY, QUANTIZATION_KEY = "int8_share", "quantization"
# Of `Facts.build`, for an engine: smallest, typical and largest batch.
PROFILE_KEY = "profile"
_PROFILE = re.compile(r"(\d{1,6}):(\d{1,6}):(\d{1,6})", re.ASCII)
SCALING = "divided by the resized picture's largest value, black stays 0"
OUTPUT_RULE = "min-max stretch, a flat map gives zeros"


class WeightsFacts(BaseModel):
    """Which weights an artifact was made from.

    Attributes:
        name: the file's name, or `random:SEED`.
        sha256: of the file; for random weights, of their values.
        origin: `published`, `pinned`, `custom`, `bundled` or `random`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    origin: str

    @property
    def variant(self) -> str:
        """What random weights add to the names of their files, such as `random0`."""
        return self.name.replace(":", "") if self.origin == "random" else ""


class QuantizationFacts(BaseModel):
    """What was asked of int8, and of bf16 the pictures and the seed.

    Attributes:
        calibration: sha256 of the calibration pictures' files; empty where they were drawn.
        min_iou: least mean IoU of the masks with float32's.
        max_mae: largest mean absolute difference of the masks.
        best_effort: written even if it is not that good.
        seed: of all that was drawn at random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: tuple[str, ...]
    min_iou: float
    max_mae: float
    best_effort: bool
    seed: int


class Facts(BaseModel):
    """Everything needed to run a model file on a picture, and to know where it came from.

    Attributes:
        batch: pictures per call, or None where it is free.
        outputs: 1 (d0) or 7 (d0..d6, d0 first).
        scaling: what happens between resize and mean, in words.
        output_rule: what makes a mask of the network's output, in words.
        quantization: the request for int8 or bf16; None in every other precision.
        tools: versions of the packages that made the file.
        build: what only its backend knows of it, such as the batch profile of an engine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    model: str
    architecture: Architecture
    task: Task
    licence: str
    weights: WeightsFacts
    precision: Precision
    size: Annotated[int, Field(ge=1, le=MAX_FACTS_SIZE)]
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] | None
    outputs: Annotated[int, Field(ge=1, le=MAX_OUTPUTS)]
    channels: str = "RGB"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize
    scaling: str = SCALING
    inverted: bool
    output_rule: str = OUTPUT_RULE
    quantization: QuantizationFacts | None = None
    tools: Mapping[str, str] = {}
    build: Mapping[str, str] = {}

    @field_validator("channels", "scaling", "output_rule")
    @classmethod
    def _check_word(cls, word: str, info: ValidationInfo) -> str:
        """There is one pipeline; a file that describes another one misleads whoever reads it."""
        if word != cls.model_fields[str(info.field_name)].default:
            raise ValueError(f"u2export knows no {info.field_name} {word!r}")
        return word

    @field_validator("build")
    @classmethod
    def _check_build(cls, build: Mapping[str, str]) -> Mapping[str, str]:
        share = build.get(INT8_SHARE_KEY)
        if share and not 0 <= float(share) <= 1:
            raise ValueError(f"{INT8_SHARE_KEY} must be from 0 to 1")
        return build

    @property
    def picture(self) -> PictureSpec:
        """The pre- and postprocessing of these weights."""
        return PictureSpec(self.size, self.mean, self.std, self.resize, self.inverted)

    @property
    def profile(self) -> tuple[int, int, int] | None:
        """Smallest, typical and largest batch of an engine; None where the batch is fixed.

        Raises:
            ArtifactError: what stands there is no such profile.
        """
        text = self.build.get(PROFILE_KEY)
        if text is None:
            return None
        match = _PROFILE.fullmatch(text)
        if not match:
            raise ArtifactError(f"its facts hold {text!r:.50} for a batch profile: export it again")
        return int(match[1]), int(match[2]), int(match[3])

    def readable(self) -> dict[str, str]:
        """What somebody who opens the model file with other tools needs, one entry a fact."""
        return {
            "model": self.model,
            "weights_sha256": self.weights.sha256,
            "size": str(self.size),
            "mean": " ".join(map(str, self.mean)),
            "std": " ".join(map(str, self.std)),
            "channels": self.channels,
            "resize": str(self.resize),
            "scaling": self.scaling,
            "output_rule": ("inverted, " if self.inverted else "") + self.output_rule,
            "precision": str(self.precision),
            "licence": self.licence,
        }

    def credits(self) -> dict[str, str]:
        """Author and licence of the weights, under the keys that other tools show.

        Source:
            ONNX's list of standard metadata names them.
        """
        licence, _, author = self.licence.partition(", ")
        return {"model_author": author, "model_license": licence}


def model_facts(model: ModelSpec, weights: WeightsFacts) -> Facts:
    """What is known of a model's weights, or of a foreign file made from them."""
    return Facts(
        model=model.name,
        architecture=model.architecture,
        task=model.task,
        licence=model.licence,
        weights=weights,
        precision=Precision.FP32,
        size=model.picture.size,
        batch=None,
        outputs=1,
        mean=model.picture.mean,
        std=model.picture.std,
        resize=model.picture.resize,
        inverted=model.picture.inverted,
    )


def parse_facts(text: str, origin: Path) -> Facts:
    """Read facts embedded in a model file.

    Raises:
        ArtifactError: they are of a newer schema, or not ours.
    """
    try:
        refuse_newer_schema(parse_json(text), origin)
        return parse_model(text, Facts)
    except ValueError as error:
        raise ArtifactError(
            f"the facts embedded in {origin} cannot be read: {first_line(error)}"
        ) from error


def refuse_newer_schema(document: object, path: Path) -> None:
    """Refuse a document of a later release.

    Raises:
        ArtifactError: its schema is newer than this release reads.
    """
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise ArtifactError(
            f"{path} has schema {schema}, this u2export reads up to {SCHEMA}: "
            "upgrade u2export or export again"
        )
