"""An exported model on disk: its files, its manifest, and the proof that neither was changed.

A manifest `<file>.json` lies beside the model file. It lists the sha256 of every file of the
artifact, and its own text is canonical and carries a digest of itself, so that one changed byte
anywhere is found. The same facts are embedded in the model file where the format has a place for
them, with a digest of the file itself, so that a file copied alone still runs and is still checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError

from u2export.errors import ArtifactError, InputError
from u2export.spec import Architecture, ModelSpec, PictureSpec, Precision, Resize, Task

SCHEMA = 1
FACTS_KEY = "u2export"
DIGEST_KEY = "u2export.digest"
# Of `Facts.build`, for int8: the share of multiply-adds in whole numbers, and how it was found.
INT8_SHARE_KEY, QUANTIZATION_KEY = "int8_share", "quantization"
DIGEST_MARK = "u2export-sha256:"
SCALING = "divided by the resized picture's largest value, black stays 0"
STRETCH = "min-max stretch, a flat map gives zeros"


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
        quantization: what was asked of int8 or bf16; None in every other precision.
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
    size: int
    batch: int | None
    outputs: int
    channels: str = "RGB"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize
    scaling: str = SCALING
    inverted: bool
    output_rule: str = STRETCH
    quantization: QuantizationFacts | None = None
    tools: Mapping[str, str] = {}
    build: Mapping[str, str] = {}

    @property
    def picture(self) -> PictureSpec:
        """The pre- and postprocessing of these weights."""
        return PictureSpec(self.size, self.mean, self.std, self.resize, self.inverted)

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


class Manifest(BaseModel):
    """The file `<artifact>.json`.

    Attributes:
        files: sha256 by file name, the model file first.
        checks: what was measured before the artifact was published, by name.
        digest: sha256 of this manifest's text with an empty digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    backend: str
    facts: Facts
    files: Mapping[str, str]
    checks: Mapping[str, Any] = {}
    digest: str = ""

    def text(self) -> str:
        """The one canonical text of this manifest, with its digest filled in."""
        return _signed(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Artifact:
    """A model file that was verified, with what is known about it.

    Attributes:
        path: the model file.
        backend: name of the backend that opens it.
        facts: how to feed it and what it was made from.
        files: sha256 by file name; empty for a file without manifest.
        checks: what was measured when it was built.
        foreign: u2export did not make it, so that its facts are only what its model says.
    """

    path: Path
    backend: str
    facts: Facts
    files: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    foreign: bool = False

    @property
    def stored(self) -> Precision | None:
        """The precision of the values in the file, or None where nobody says."""
        return None if self.foreign else self.facts.precision

    @property
    def int8_share(self) -> float | None:
        """The share of multiply-adds in whole numbers, or None where nobody says."""
        told = self.facts.build.get(INT8_SHARE_KEY)
        return float(told) if told else None

    def with_facts(self, **facts: Any) -> Artifact:
        """The same with other facts, such as another size of the input, which weights can have."""
        return dataclasses.replace(self, facts=self.facts.model_copy(update=facts))

    @property
    def manifest(self) -> Manifest:
        """The manifest that belongs beside the file."""
        return Manifest(
            backend=self.backend, facts=self.facts, files=self.files, checks=self.checks
        )


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


def manifest_path(path: Path) -> Path:
    """Where the manifest of a model file lies: the same name with `.json` appended."""
    return path.with_name(path.name + ".json")


def sha256_of(path: Path) -> str:
    """Hash a file's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sha256_of_file(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def sha256_of_file(file: BinaryIO) -> str:
    """Hash what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def no_digest(mark: str = DIGEST_MARK) -> str:
    """What stands in the digest's place while the digest is taken."""
    return mark + "0" * 64


def embed_digest(path: Path, mark: str = DIGEST_MARK) -> None:
    """Put the digest of a model file, taken with the digest's place zeroed, into that place.

    Raises:
        ArtifactError: the file has no place for it, or more than one.
    """
    content, blank = path.read_bytes(), no_digest(mark).encode()
    if content.count(blank) != 1:
        raise ArtifactError(f"{path.name} has no single place for its digest")
    digest = mark + hashlib.sha256(content).hexdigest()
    path.write_bytes(content.replace(blank, digest.encode()))


def check_digest(path: Path, mark: str = DIGEST_MARK) -> bool:
    """Verify a digest put in by `embed_digest`.

    Returns:
        False where the file carries none (it is not ours).

    Raises:
        ArtifactError: the file is not the one that was written.
    """
    content, zeros = path.read_bytes(), no_digest(mark).encode()
    start = content.rfind(mark.encode())
    if start < 0:
        return False
    end = start + len(zeros)
    blank = content[:start] + zeros + content[end:]
    if content[start:end] != (mark + hashlib.sha256(blank).hexdigest()).encode():
        raise ArtifactError(f"{path} was changed after it was exported: export it again")
    return True


def read(path: Path) -> Artifact:
    """Read the artifact whose model file is `path`, verifying every byte of it.

    Raises:
        InputError: there is no such file.
        ArtifactError: a file or the manifest is altered, missing or of a newer schema.
    """
    manifest = _read_manifest(manifest_path(path))
    for name, expected in manifest.files.items():
        part = path.with_name(name)
        if not part.is_file():
            raise ArtifactError(f"{path} is incomplete: {name} is missing beside it")
        if sha256_of(part) != expected:
            raise ArtifactError(
                f"{part} was changed after it was exported (its sha256 is not the manifest's): "
                "export it again"
            )
    if next(iter(manifest.files), None) != path.name:
        raise ArtifactError(f"{manifest_path(path)} is not the manifest of {path.name}")
    return Artifact(path, manifest.backend, manifest.facts, manifest.files, manifest.checks)


def note_check(artifact: Artifact, name: str, found: object) -> None:
    """Add what was measured of an artifact to its manifest, whole or not at all.

    Args:
        artifact: with a manifest.
        name: of the check; one of that name is replaced.
        found: what JSON can hold.

    Raises:
        InputError: it has no manifest, or the place cannot be written.
    """
    target = manifest_path(artifact.path)
    if not artifact.files:
        raise InputError(f"{artifact.path} has no manifest to write into")
    checks = {**artifact.checks, name: found}
    text = dataclasses.replace(artifact, checks=checks).manifest.text()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            write_durably(part, text.encode())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from error


def parse_facts(text: str, origin: Path) -> Facts:
    """Read facts embedded in a model file.

    Raises:
        ArtifactError: they are of a newer schema, or not ours.
    """
    try:
        _refuse_newer(json.loads(text), origin)
        return Facts.model_validate_json(text)
    except ValueError as error:
        raise ArtifactError(f"the facts embedded in {origin} cannot be read") from error


def _read_manifest(path: Path) -> Manifest:
    try:
        text = path.read_bytes().decode()
        _refuse_newer(json.loads(text), path)
        manifest = Manifest.model_validate_json(text)
    except (ValidationError, ValueError) as error:
        raise ArtifactError(f"{path} is not a manifest: it was cut or changed") from error
    if _signed(json.loads(text)) != text:
        raise ArtifactError(f"{path} was changed after it was written: export the artifact again")
    return manifest


def _refuse_newer(document: object, path: Path) -> None:
    found = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(found, int) and found > SCHEMA:
        raise ArtifactError(
            f"{path} has schema {found}, this u2export reads up to {SCHEMA}: "
            "upgrade u2export or export again"
        )


def _signed(document: dict[str, Any]) -> str:
    """The canonical text of a manifest with the digest of itself filled in.

    Taken from the document as it was read, not from today's fields, so that a manifest of an
    older release stays what it was.
    """
    digest = hashlib.sha256(_canonical({**document, "digest": ""})).hexdigest()
    return _canonical({**document, "digest": digest}).decode()


def _canonical(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def check_places(*paths: Path | None) -> None:
    """Make sure that files can be written there later; quick, before work that takes long.

    Raises:
        InputError: a place is a folder, lies in no folder, or may not be written.
    """
    for path in paths:
        if path is None or _stream(path):
            continue
        place = path.resolve()
        if place.is_dir():
            raise InputError(f"{path} cannot be written: it is a folder")
        folder = next(parent for parent in place.parents if parent.exists())
        if not folder.is_dir():
            raise InputError(f"{path} cannot be written: {folder} is no folder")
        if not os.access(folder, os.W_OK):
            raise InputError(f"{path} cannot be written: {folder} may not be changed")


def _stream(path: Path) -> bool:
    """Whether it is something like /dev/stdout, where nothing can be replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: Path, content: str) -> None:
    """Write a text file, whole or not at all; its folder is made if absent.

    Raises:
        InputError: the place cannot be written.
    """
    stream = _stream(path)
    if not stream:  # a pipe behind /dev/stdout has no other name
        path = path.resolve()  # what a link points to is written, not the link
    part_file = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if stream:
            path.write_text(content, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part_file.write_text(content, encoding="utf-8")
            part_file.replace(path)
        finally:
            part_file.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
