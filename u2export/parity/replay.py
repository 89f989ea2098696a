"""Replay files: a failure's picture, both outputs, artifact, versions and command in one file."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from u2export.compare.budgets import Budget
from u2export.compare.stages import (
    Pipeline,
    PipelineTrace,
    find_first_difference,
    run_pipeline,
)
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact, manifest_path
from u2export.core.enums import Resize, Stage
from u2export.core.requests import RunRequest
from u2export.errors import ArtifactError, InputError, ParityError
from u2export.parity.candidates import ShownCase
from u2export.parity.replay_archive import ReplayArchive
from u2export.parity.report import CandidateResult, CaseResult, ParityReport, RuntimeInfo
from u2export.parity.request import ParityRequest, open_candidate
from u2export.reports.text import printable
from u2export.system.documents import parse_model
from u2export.system.files import atomic_file, scratch_folder
from u2export.system.versions import package_versions

SCHEMA = 1
# The archive's members, and the prefix of the artifact's files.
_RECORD, _PICTURE, _ARRAYS, _ARTIFACT = "replay.json", "picture", "arrays.npz", "artifact/"
# Prefixes of the arrays' names: the reference's pipeline, and the candidate's.
_PREFIXES = _REFERENCE, _CANDIDATE = "reference_", "found_"
# What a pipeline gave at each stage, by the names of the arrays in the file.
_ARRAY_NAMES = {
    Stage.DECODE: "picture",
    Stage.PREPROCESS: "x",
    Stage.INFER: "saliency",
    Stage.POSTPROCESS: "stretched",
    Stage.COMPOSE: "mask",
}
# Their types, and their numbers of dimensions.
_ARRAY_KINDS: dict[str, tuple[type, int]] = {
    "picture": (np.uint8, 3),
    "x": (np.float32, 4),
    "saliency": (np.float32, 2),
    "stretched": (np.float32, 2),
    "mask": (np.uint8, 2),
}


class ReplayRecord(BaseModel):
    """What is needed to check a failed case again.

    Attributes:
        schema_version: version of this record's fields.
        created: date and time of the check, UTC.
        command: the command as typed.
        machine: facts of the machine, by name.
        versions: versions of the packages that matter.
        party: the candidate and what ran it.
        budget: how far the candidate may differ.
        case: the case's result in that check.
        artifact: name of the candidate's file.
        model: for a file of another tool: the model it was made from.
        resample: the requested resizing; None where the artifact's own was used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    created: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    party: RuntimeInfo
    budget: Budget
    case: CaseResult
    artifact: str
    model: str | None
    resample: Resize | None


def write_replays(
    request: ParityRequest, report: ParityReport, shown_cases: list[ShownCase], folder: Path
) -> list[Path]:
    """Write a replay file for the worst failure of each candidate.

    Raises:
        InputError: the folder cannot be written.
    """
    written = []
    for path, result in zip(request.candidates, report.candidates, strict=False):
        name, failed = printable(path.name), {case.name: case for case in result.failed}
        worst = next((s for s in shown_cases if s.candidate == name and s.case in failed), None)
        artifact = open_candidate(path, request)
        if worst is None or not isinstance(artifact, Artifact):
            continue
        target = folder / f"{name}.replay.zip"
        record = _replay_record(report, result, failed[worst.case], artifact, request)
        traces = worst.reference_trace, worst.candidate_trace
        write_replay(target, record, artifact, worst.content, *traces)
        written.append(target)
    return written


def _replay_record(
    report: ParityReport,
    result: CandidateResult,
    case: CaseResult,
    artifact: Artifact,
    request: ParityRequest,
) -> ReplayRecord:
    return ReplayRecord(
        created=report.created,
        command=report.command,
        machine=report.machine,
        versions=report.versions,
        party=result.party,
        budget=result.budget,
        case=case,
        artifact=printable(artifact.path.name),
        model=artifact.facts.model if artifact.foreign else None,
        resample=request.resample,
    )


def write_replay(
    path: Path,
    record: ReplayRecord,
    artifact: Artifact,
    content: bytes,
    reference_trace: PipelineTrace,
    candidate_trace: PipelineTrace,
) -> None:
    """Write a replay file, complete or not at all.

    Args:
        path: the replay file.
        record: its facts.
        artifact: the candidate; its files go along.
        content: bytes of the picture file.
        reference_trace: what the reference's pipeline gave at each stage.
        candidate_trace: what the candidate's pipeline gave at each stage.

    Raises:
        InputError: the file cannot be written.
    """
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays,
        **_named_arrays(_REFERENCE, reference_trace),
        **_named_arrays(_CANDIDATE, candidate_trace),
    )
    model_files = registry.model_files(artifact)
    manifest = manifest_path(artifact.path)
    if manifest.is_file():
        model_files = [*model_files, manifest]
    try:
        with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_RECORD, record.model_dump_json(indent=1))
            archive.writestr(_PICTURE, content)
            archive.writestr(_ARRAYS, arrays.getvalue())
            for model_file in model_files:
                archive.write(model_file, _ARTIFACT + model_file.name)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def _named_arrays(prefix: str, trace: PipelineTrace) -> dict[str, Any]:
    return {prefix + name: getattr(trace, name) for name in _ARRAY_NAMES.values()}


@dataclass(frozen=True)
class ReplayResult:
    """The result of a failed case that was checked again.

    Attributes:
        record: the facts of the first check.
        passed: the case passes here.
        stage: the first stage that differs by more than the budget; empty where none does.
        reasons: what is over its bound here, as phrases.
        changed: what is different here, as phrases.
    """

    record: ReplayRecord
    passed: bool
    stage: str
    reasons: tuple[str, ...]
    changed: tuple[str, ...]


def replay_failure(path: Path, run: RunRequest | None = None) -> ReplayResult:
    """Check a replay file's case again on this machine, with the artifact in it.

    Raises:
        InputError: there is no such file.
        ArtifactError: it is no replay file.
        DependencyError: its runtime or device is absent.
    """
    with scratch_folder() as folder:
        replay = _read_replay(path, Path(folder))
        record = replay.record
        artifact = registry.open_artifact(replay.artifact, record.model)
        spec = artifact.facts.picture
        if record.resample:
            spec = dataclasses.replace(spec, resize=record.resample)
        with registry.open_runner(artifact, run) as runner:
            pipeline = Pipeline(artifact.path.name, runner.single, spec)
            trace = run_pipeline(replay.content, pipeline)
    first = find_first_difference(replay.reference_trace, trace, record.budget)
    return ReplayResult(
        record=record,
        passed=first.stage is None,
        stage=first.stage.value if first.stage else "",
        reasons=first.reasons,
        changed=(
            *_changed_versions(record.versions),
            *_changed_stages(replay.candidate_trace, trace),
        ),
    )


@dataclass(frozen=True)
class _Replay:
    """A replay file's content.

    Attributes:
        record: the facts of the first check.
        content: bytes of the picture file.
        reference_trace: what the reference's pipeline gave at each stage.
        candidate_trace: what the candidate's pipeline gave at each stage.
        artifact: path of the unpacked artifact.
    """

    record: ReplayRecord
    content: bytes
    reference_trace: PipelineTrace
    candidate_trace: PipelineTrace
    artifact: Path


def _read_replay(path: Path, folder: Path) -> _Replay:
    """Read a replay file, and unpack its artifact into an empty folder.

    Raises:
        InputError: there is no such file.
        ArtifactError: it is no replay file, or of a newer schema.
    """
    with closing(ReplayArchive(path)) as archive:
        try:
            record = parse_model(archive.read(_RECORD), ReplayRecord)
        except ValueError as error:
            raise archive.damage(error) from error
        content = archive.read(_PICTURE)
        traces = _read_traces(archive)
        for name in archive.names():
            plain = Path(name).name  # only the last part of the name: none leads out of the folder
            if name.startswith(_ARTIFACT) and plain:
                _unpack(archive, name, folder / plain)
    if record.schema_version > SCHEMA:
        raise ArtifactError(
            f"{path} has schema {record.schema_version}, this u2export reads up to "
            f"{SCHEMA}: upgrade u2export"
        )
    return _Replay(record, content, *traces, folder / Path(record.artifact).name)


def _unpack(archive: ReplayArchive, name: str, target: Path) -> None:
    try:
        file = target.open("xb")
    except OSError as error:  # such as two entries of one name, or a name that no disk takes
        raise archive.damage(error) from error
    with file:
        archive.unpack(name, file)


def _read_traces(archive: ReplayArchive) -> tuple[PipelineTrace, PipelineTrace]:
    """Read what the reference's and the candidate's pipeline gave.

    Raises:
        ArtifactError: their arrays are no pictures, maps and masks that belong together.
    """
    kinds = {
        prefix + name: _ARRAY_KINDS[name] for prefix in _PREFIXES for name in _ARRAY_NAMES.values()
    }
    arrays = archive.arrays(_ARRAYS, kinds)
    reference, candidate = (
        PipelineTrace(*(arrays[prefix + name] for name in _ARRAY_NAMES.values()))
        for prefix in _PREFIXES
    )
    for trace in (reference, candidate):
        sides = trace.x.shape[2:]
        maps_fit = trace.saliency.shape == trace.stretched.shape == sides
        if trace.picture.shape != (*trace.mask.shape, 3) or not maps_fit:
            raise archive.damage("its arrays do not fit each other")
    return reference, candidate


def _changed_versions(there: Mapping[str, str]) -> list[str]:
    """Packages whose version here is not that of the first check, as phrases."""
    here = package_versions(there)
    return [
        f"{name} {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]


def _changed_stages(recorded: PipelineTrace, trace: PipelineTrace) -> list[str]:
    """Stages at which the candidate gives something else here, as phrases."""
    lines = []
    for stage, name in _ARRAY_NAMES.items():
        there, here = getattr(recorded, name), getattr(trace, name)
        if there.shape != here.shape:
            lines.append(f"{stage.value}: {there.shape} there, {here.shape} here")
        elif not np.array_equal(there, here):
            lines.append(f"{stage.value}: up to {_largest_difference(there, here):.3g} apart")
    return lines


def _largest_difference(there: Array, here: Array) -> float:
    return float(np.abs(there.astype(np.float64) - here.astype(np.float64)).max())


def format_replay(result: ReplayResult) -> str:
    """Describe the second check for people."""
    case = result.record.case
    verdict = "passes here" if result.passed else f"fails here too, at stage '{result.stage}'"
    lines = [f"'{case.name}' of {result.record.party.name} {verdict}"]
    lines += [f"there: {reason}" for reason in case.reasons]
    lines += [f"here: {reason}" for reason in result.reasons]
    lines += [f"different: {line}" for line in result.changed] or ["nothing is different here"]
    return "\n".join(lines)


def raise_if_replay_failed(result: ReplayResult) -> None:
    """Raise an error if the case fails here too.

    Raises:
        ParityError: it fails.
    """
    if not result.passed:
        raise ParityError(f"'{result.record.case.name}' fails here too: {result.reasons[0]}")
