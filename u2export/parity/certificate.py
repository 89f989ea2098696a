"""The certificate of a passed check, in the artifact's manifest; reading it runs nothing."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from u2export.compare.budgets import Budget, budget_excess, looser_bounds
from u2export.compare.metrics import MaskComparison
from u2export.core.artifact import Artifact, record_check
from u2export.errors import ArtifactError, ParityError
from u2export.parity.report import CandidateResult, ParityReport
from u2export.system.documents import first_line, parse_model

CERTIFICATE_KEY = "certificate"  # of `Artifact.checks`


class Certificate(BaseModel):
    """The result of a check that an artifact passed.

    Attributes:
        created: date and time of the check, UTC.
        files: sha256 of the checked files, by file name.
        reference: name of what it was compared with.
        weights: sha256 of the weights both were made from.
        cases: number of cases checked.
        budget: how far it was allowed to differ.
        judgement: how far it differed.
        worst: name of the picture it differed most on.
        ran: what really ran.
        versions: versions of the packages that matter.
        properties: names of the properties that were checked, such as `the same twice`.
        precision: found in the checked file; empty in certificates of earlier releases.
        kinds: number of checked cases by their kind, such as `yours`.
        budgets: the file whose budgets replaced the built-in ones; empty where none did.
        looser: where these budgets allow more than the built-in ones; empty where they do not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str
    files: dict[str, str]
    reference: str
    weights: str
    cases: Annotated[int, Field(ge=1)]
    budget: Budget
    judgement: MaskComparison
    worst: str
    ran: str
    versions: dict[str, str]
    properties: tuple[str, ...] = ()
    precision: str = ""
    kinds: dict[str, Annotated[int, Field(ge=0)]] = {}
    budgets: str = ""
    looser: str = ""


def write_certificate(artifact: Artifact, result: CandidateResult, report: ParityReport) -> None:
    """Write a passed result into an artifact's manifest.

    Raises:
        ParityError: the result did not pass.
        InputError: the artifact has no manifest, or it cannot be written.
    """
    if not result.passed or result.judgement is None or result.worst is None:
        raise ParityError(f"{result.party.name} did not pass: there is nothing to certify")
    certificate = Certificate(
        created=report.created,
        files=dict(artifact.files),
        reference=report.reference.name,
        weights=report.reference.weights,
        cases=len(result.checked),
        budget=result.budget,
        judgement=result.judgement,
        worst=result.worst.name,
        ran=f"{result.party.runtime}: {result.party.ran}",
        versions=report.versions,
        properties=tuple(case.name for case in result.checked if case.kind == "property"),
        precision=result.party.precision,
        kinds=dict(Counter(case.kind for case in result.checked)),
        budgets=report.budgets,
        looser=looser_bounds(result.budget, result.party.precision),
    )
    record_check(artifact, CERTIFICATE_KEY, certificate.model_dump(mode="json"))


def read_certificate(artifact: Artifact) -> Certificate:
    """Read the certificate of an artifact that `registry.open_artifact` verified.

    Raises:
        ParityError: there is no certificate.
        ArtifactError: the certificate is for other bytes, or cannot be read.
    """
    entry = artifact.checks.get(CERTIFICATE_KEY)
    if entry is None:
        raise ParityError(
            f"{artifact.path} was never judged: u2export parity torch {artifact.path}"
        )
    try:
        certificate = parse_model(json.dumps(entry), Certificate)
    except ValueError as error:
        raise ArtifactError(
            f"the certificate of {artifact.path} cannot be read: {first_line(error)}"
        ) from error
    if certificate.files != dict(artifact.files):
        raise ArtifactError(f"the certificate of {artifact.path} is for other bytes: judge it anew")
    said = certificate.precision
    if said and said != str(artifact.facts.precision):
        raise ArtifactError(f"the certificate of {artifact.path} is for {said}: judge it anew")
    if reason := _contradiction(certificate):
        raise ArtifactError(f"the certificate of {artifact.path} contradicts itself: {reason}")
    return certificate


def _contradiction(certificate: Certificate) -> str:
    """Say why the figures could not have passed, as a phrase; empty where they could."""
    figures = certificate.judgement
    if not 0 < figures.subjects <= figures.pictures:
        return f"{figures.subjects} of {figures.pictures} pictures have a subject"
    if None in (figures.mask_mae, figures.mask_iou, figures.worst_iou):
        return "it has no figures of masks"
    if not figures.raw_mean <= figures.raw_max or min(figures.raw_mean, figures.mask_mae or 0) < 0:
        return f"raw mean {figures.raw_mean:g} and raw max {figures.raw_max:g} cannot be"
    if not 0 <= (figures.worst_iou or 0) <= (figures.mask_iou or 0) <= 1:
        return f"worst IoU {figures.worst_iou} and IoU {figures.mask_iou} cannot be"
    counted = sum(certificate.kinds.values()) if certificate.kinds else certificate.cases
    properties = certificate.kinds.get("property", len(certificate.properties))
    if counted != certificate.cases or figures.pictures > certificate.cases:
        return f"{certificate.cases} cases are not {counted}, of {figures.pictures} pictures"
    if properties != len(certificate.properties):
        return f"it names {len(certificate.properties)} of {properties} properties"
    excess = budget_excess(figures, certificate.budget)
    return f"it passed, but {excess}" if excess else ""
