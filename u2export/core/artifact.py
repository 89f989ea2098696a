"""An exported model on disk: its files, its manifest, its facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from u2export.core.digest import text_with_digest
from u2export.core.enums import CALIBRATED, Precision
from u2export.core.facts import (
    INT8_SHARE_KEY,
    SCHEMA,
    Facts,
    QuantizationFacts,
    refuse_newer_schema,
)
from u2export.core.requests import ExportSpec
from u2export.errors import ArtifactError, InputError
from u2export.system.documents import first_line, is_file, parse_json, parse_model, read_bounded
from u2export.system.files import file_sha256, write_bytes

MAX_NAME_BYTES = 255  # of a file: what the usual disks take


def _check_plain_name(name: str) -> str:
    """Check the name of a file that lies beside the manifest.

    Raises:
        ValueError: it leads elsewhere, or no disk takes it.
    """
    plain = name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")
    if not plain or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError("it is no plain name of a file beside the manifest")
    return name


_PlainName = Annotated[str, AfterValidator(_check_plain_name)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


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
    files: Mapping[_PlainName, _Sha256]
    checks: Mapping[str, Any] = {}
    digest: str = ""

    def text(self) -> str:
        """The one canonical text of this manifest, with its digest filled in."""
        return text_with_digest(self.model_dump(mode="json"))


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
    def stored_precision(self) -> Precision | None:
        """The precision of the values in the file; None for a foreign file."""
        return None if self.foreign else self.facts.precision

    @property
    def int8_share(self) -> float | None:
        """The share of multiply-adds in int8, or None where the file does not say."""
        share = self.facts.build.get(INT8_SHARE_KEY)
        return float(share) if share else None

    def with_facts(self, **facts: Any) -> Artifact:
        """The same with other facts, such as another size of the input, which weights can have."""
        return dataclasses.replace(self, facts=self.facts.model_copy(update=facts))

    @property
    def manifest(self) -> Manifest:
        """The manifest that belongs beside the file."""
        return Manifest(
            backend=self.backend, facts=self.facts, files=self.files, checks=self.checks
        )


def manifest_path(path: Path) -> Path:
    """Where the manifest of a model file lies: the same name with `.json` appended."""
    return path.parent / f"{path.name}.json"


def read_artifact(path: Path) -> Artifact:
    """Read the artifact whose model file is `path`, verifying every byte of it.

    Raises:
        InputError: there is no such file.
        ArtifactError: a file or the manifest is altered, missing or of a newer schema.
    """
    manifest = _read_manifest(manifest_path(path))
    for name, expected in manifest.files.items():
        file = path.with_name(name)
        if not is_file(file):
            raise ArtifactError(f"{path} is incomplete: {name} is missing beside it")
        if file_sha256(file) != expected:
            raise ArtifactError(
                f"{file} was changed after it was exported (its sha256 is not the manifest's): "
                "export it again"
            )
    if next(iter(manifest.files), None) != path.name:
        raise ArtifactError(f"{manifest_path(path)} is not the manifest of {path.name}")
    return Artifact(path, manifest.backend, manifest.facts, manifest.files, manifest.checks)


def record_check(artifact: Artifact, name: str, figures: object) -> None:
    """Add what was measured of an artifact to its manifest, whole or not at all.

    Args:
        artifact: with a manifest.
        name: of the check; one of that name is replaced.
        figures: what JSON can hold.

    Raises:
        InputError: it has no manifest, or the place cannot be written.
    """
    target = manifest_path(artifact.path)
    if not artifact.files:
        raise InputError(f"{artifact.path} has no manifest to write into")
    checks = {**artifact.checks, name: figures}
    text = dataclasses.replace(artifact, checks=checks).manifest.text()
    try:
        write_bytes(target, text.encode(), durable=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from error


def _read_manifest(path: Path) -> Manifest:
    try:
        text = read_bounded(path).decode()
        document = parse_json(text)
        refuse_newer_schema(document, path)
        manifest = parse_model(text, Manifest)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(
            f"{path} is not a manifest: it was cut or changed ({first_line(error)})"
        ) from error
    if text_with_digest(document) != text:
        raise ArtifactError(f"{path} was changed after it was written: export the artifact again")
    return manifest


def converted_facts(
    parent: Artifact,
    spec: ExportSpec,
    tools: Mapping[str, str],
    build: Mapping[str, str] | None = None,
) -> Facts:
    """Say what an artifact converted from `parent` to `spec` is.

    Args:
        parent: what was converted.
        spec: what was asked for.
        tools: versions of the packages that converted it.
        build: what only this backend knows of its file.
    """
    return parent.facts.model_copy(
        update={
            "quantization": parent.facts.quantization or _quantization_facts(parent, spec),
            "precision": spec.precision,
            "size": spec.size,
            "batch": spec.batch,
            "outputs": 7 if spec.all_outputs else 1,
            "tools": dict(sorted({**parent.facts.tools, **tools}.items())),
            "build": dict(sorted({**parent.facts.build, **(build or {})}.items())),
        }
    )


def _quantization_facts(parent: Artifact, spec: ExportSpec) -> QuantizationFacts | None:
    """What was asked of int8 or bf16; None for other precisions, and for a foreign parent."""
    if spec.precision not in CALIBRATED or parent.backend != "torch":
        return None
    request = spec.calibrated
    return QuantizationFacts(
        calibration=tuple(sorted({file_sha256(path) for path in request.pictures})),
        min_iou=request.min_iou,
        max_mae=request.max_mae,
        best_effort=request.best_effort,
        seed=request.seed,
    )
