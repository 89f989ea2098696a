"""One file that holds a failure: the picture, both outputs, the artifact, versions and command."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from u2export import registry
from u2export.artifact import Artifact, manifest_path
from u2export.backend import Array
from u2export.errors import ArtifactError, InputError
from u2export.parity.budgets import Budget
from u2export.parity.report import CaseResult, Party
from u2export.parity.stages import Parting, Stage, Way, part
from u2export.spec import Resize

SCHEMA = 1
_NOTES, _PICTURE, _ARRAYS, _ARTIFACT = "replay.json", "picture", "arrays.npz", "artifact/"
_STAGES = ("picture", "x", "saliency", "stretched", "mask")


class Notes(BaseModel):
    """What is needed to judge the same case again.

    Attributes:
        model: for a foreign artifact: the model it was made from.
        resample: how pictures became square, where that was asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    created: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    party: Party
    budget: Budget
    case: CaseResult
    artifact: str
    model: str | None
    resample: Resize | None


def write(
    path: Path, notes: Notes, artifact: Artifact, content: bytes, reference: Way, found: Way
) -> None:
    """Write a replay file, whole or not at all.

    Raises:
        InputError: the place cannot be written.
    """
    arrays = {f"reference_{name}": getattr(reference, name) for name in _STAGES}
    arrays |= {f"found_{name}": getattr(found, name) for name in _STAGES}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    manifests = [manifest_path(artifact.path)]
    files = [*registry.model_files(artifact), *(one for one in manifests if one.is_file())]
    part_file = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(part_file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(_NOTES, notes.model_dump_json(indent=1))
                archive.writestr(_PICTURE, content)
                archive.writestr(_ARRAYS, packed.getvalue())
                for file in files:
                    archive.write(file, _ARTIFACT + file.name)
            part_file.replace(path)
        finally:
            part_file.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


class Replay:
    """A replay file that was read; its artifact lies in a folder of the caller's."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Unpack a replay file.

        Args:
            path: the file.
            folder: an empty one; the artifact's files are put there.

        Raises:
            InputError: there is no such file.
            ArtifactError: it is no replay file, or of a newer schema.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                self.notes = Notes.model_validate_json(archive.read(_NOTES))
                self.content = archive.read(_PICTURE)
                with np.load(io.BytesIO(archive.read(_ARRAYS)), allow_pickle=False) as arrays:
                    self.reference = Way(*(arrays[f"reference_{name}"] for name in _STAGES))
                    self.found = Way(*(arrays[f"found_{name}"] for name in _STAGES))
                for name in archive.namelist():
                    if name.startswith(_ARTIFACT):
                        # by its last part: no name in the archive leads out of the folder
                        (folder / Path(name).name).write_bytes(archive.read(name))
        except FileNotFoundError as error:
            raise InputError(f"there is no replay file at {path}") from error
        except (OSError, KeyError, ValueError, ValidationError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{path} is no replay file, or was cut: {error}") from error
        if self.notes.schema_version > SCHEMA:
            raise ArtifactError(
                f"{path} has schema {self.notes.schema_version}, this u2export reads up to "
                f"{SCHEMA}: upgrade u2export"
            )
        self.artifact = folder / Path(self.notes.artifact).name

    def judge(self, found: Way) -> Parting:
        """Compare what the candidate gives here with the reference of there."""
        return part(self.reference, found, self.notes.budget)

    def changed(self, found: Way) -> list[str]:
        """Say at which stages the candidate gives something else here than there."""
        lines = []
        for name, stage in zip(_STAGES, Stage, strict=True):
            label = stage.value
            there, here = getattr(self.found, name), getattr(found, name)
            if there.shape != here.shape:
                lines.append(f"{label}: {there.shape} there, {here.shape} here")
            elif not np.array_equal(there, here):
                lines.append(f"{label}: up to {_apart(there, here):.3g} apart")
        return lines


def _apart(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())
