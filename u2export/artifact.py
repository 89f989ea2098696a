"""An exported model on disk: its files, its manifest, and the proof that neither was changed.

A manifest `<file>.json` lies beside the model file. It lists the sha256 of every file of the
artifact, and its own text is canonical and carries a digest of itself, so that one changed byte
anywhere is found. The same facts are embedded in the model file where the format has a place for
them, with a digest of the file itself, so that a file copied alone still runs and is still checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from u2export.errors import ArtifactError, InputError
from u2export.spec import Architecture, ModelSpec, PictureSpec, Precision, Resize, Task

SCHEMA = 1
FACTS_KEY = "u2export"
DIGEST_KEY = "u2export.digest"
DIGEST_MARK = "u2export-sha256:"
NO_DIGEST = DIGEST_MARK + "0" * 64
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


class Facts(BaseModel):
    """Everything needed to run a model file on a picture, and to know where it came from.

    Attributes:
        batch: pictures per call, or None where it is free.
        outputs: 1 (d0) or 7 (d0..d6, d0 first).
        scaling: what happens between resize and mean, in words.
        output_rule: what makes a mask of the network's output, in words.
        tools: versions of the packages that made the file.
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
    tools: Mapping[str, str] = {}

    @property
    def picture(self) -> PictureSpec:
        """The pre- and postprocessing of these weights."""
        return PictureSpec(self.size, self.mean, self.std, self.resize, self.inverted)


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
        digest = hashlib.sha256(_canonical(self.model_copy(update={"digest": ""}))).hexdigest()
        return _canonical(self.model_copy(update={"digest": digest})).decode()


@dataclass(frozen=True)
class Artifact:
    """A model file that was verified, with what is known about it.

    Attributes:
        path: the model file.
        backend: name of the backend that opens it.
        facts: how to feed it and what it was made from.
        files: sha256 by file name; empty for a foreign file.
        checks: what was measured when it was built.
    """

    path: Path
    backend: str
    facts: Facts
    files: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)

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
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def embed_digest(path: Path) -> None:
    """Put the digest of a model file, taken with the digest's place zeroed, into that place.

    Raises:
        ArtifactError: the file has no place for it, or more than one.
    """
    content = path.read_bytes()
    if content.count(NO_DIGEST.encode()) != 1:
        raise ArtifactError(f"{path.name} has no single place for its digest")
    digest = DIGEST_MARK + hashlib.sha256(content).hexdigest()
    path.write_bytes(content.replace(NO_DIGEST.encode(), digest.encode()))


def check_digest(path: Path) -> bool:
    """Verify a digest put in by `embed_digest`.

    Returns:
        False where the file carries none (it is not ours).

    Raises:
        ArtifactError: the file is not the one that was written.
    """
    content = path.read_bytes()
    start = content.rfind(DIGEST_MARK.encode())
    if start < 0:
        return False
    end = start + len(NO_DIGEST)
    blank = content[:start] + NO_DIGEST.encode() + content[end:]
    if content[start:end] != (DIGEST_MARK + hashlib.sha256(blank).hexdigest()).encode():
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
    if manifest.text() != text:
        raise ArtifactError(f"{path} was changed after it was written: export the artifact again")
    return manifest


def _refuse_newer(document: object, path: Path) -> None:
    found = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(found, int) and found > SCHEMA:
        raise ArtifactError(
            f"{path} has schema {found}, this u2export reads up to {SCHEMA}: "
            "upgrade u2export or export again"
        )


def _canonical(manifest: Manifest) -> bytes:
    document = manifest.model_dump(mode="json")
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
