"""A passed judgement, kept in the artifact's manifest; checking it again runs nothing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from u2export.artifact import Artifact, note_check
from u2export.errors import ArtifactError, ParityError
from u2export.metrics import Judgement
from u2export.parity.budgets import Budget
from u2export.parity.report import CandidateResult, Report

NAME = "certificate"


class Certificate(BaseModel):
    """What a check found of an artifact that passed it.

    Attributes:
        created: date and time of the check, UTC.
        files: sha256 of what was judged, by file name.
        reference: name of what it was compared with.
        weights: sha256 of the weights both were made from.
        cases: how many were judged.
        budget: what it was allowed to differ by.
        judgement: by how much it did.
        worst: name of the picture it differed most on.
        ran: what really ran.
        versions: of the packages that matter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str
    files: dict[str, str]
    reference: str
    weights: str
    cases: int
    budget: Budget
    judgement: Judgement
    worst: str
    ran: str
    versions: dict[str, str]


def certify(artifact: Artifact, result: CandidateResult, report: Report) -> None:
    """Write a passed judgement into an artifact's manifest.

    Raises:
        ParityError: it did not pass.
        InputError: it has no manifest, or that cannot be written.
    """
    if not result.passed or result.judgement is None or result.worst is None:
        raise ParityError(f"{result.party.name} did not pass: there is nothing to certify")
    certificate = Certificate(
        created=report.created,
        files=dict(artifact.files),
        reference=report.reference.name,
        weights=report.reference.weights,
        cases=sum(case.judged for case in result.cases),
        budget=result.budget,
        judgement=result.judgement,
        worst=result.worst.name,
        ran=f"{result.party.runtime}: {result.party.ran}",
        versions=report.versions,
    )
    note_check(artifact, NAME, certificate.model_dump(mode="json"))


def read(artifact: Artifact) -> Certificate:
    """Give the certificate of an artifact that `registry.open_artifact` verified.

    Raises:
        ParityError: it has none.
        ArtifactError: it has one for other bytes, or what stands there is none.
    """
    found = artifact.checks.get(NAME)
    if found is None:
        raise ParityError(
            f"{artifact.path} was never judged: u2export parity torch {artifact.path}"
        )
    try:
        certificate = Certificate.model_validate(found)
    except ValidationError as error:
        raise ArtifactError(f"the certificate of {artifact.path} cannot be read") from error
    if certificate.files != dict(artifact.files):
        raise ArtifactError(f"the certificate of {artifact.path} is for other bytes: judge it anew")
    return certificate
