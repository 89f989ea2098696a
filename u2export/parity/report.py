"""What a parity check found, in a stable form that is written as JSON and read back."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from u2export.metrics import Difference, Judgement
from u2export.parity.budgets import Budget

SCHEMA = 1


class Fact(BaseModel):
    """Something a report says: it does not change, and has no field that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Party(Fact):
    """One artifact as it was judged.

    Attributes:
        name: of its file, or what stands for it, such as `torch`.
        backend: that ran it.
        precision: of the file's values.
        files: sha256 by file name.
        weights: sha256 of what it was made from.
        runtime: name and version.
        ran: what really ran, in words.
        how: `executed` here, or `emulated`.
    """

    name: str
    backend: str
    precision: str
    files: dict[str, str] = {}
    weights: str = ""
    runtime: str = ""
    ran: str = ""
    how: str = "executed"


class CaseResult(Fact):
    """One picture, or one property, judged.

    Attributes:
        name: of the case.
        kind: `drawn`, `yours`, `degenerate` or `property`.
        sha256: of the picture file; empty for a property.
        passed: nothing is over its bound.
        skipped: why it was not judged, as a phrase; it then counts for nothing.
        stage: the first that differs by more than it may; empty where none does.
        reasons: what is over its bound, as phrases.
        difference: of the networks' outputs.
        contrast: largest minus smallest value of the reference's saliency.
    """

    name: str
    kind: str
    sha256: str = ""
    passed: bool
    skipped: str = ""
    stage: str = ""
    reasons: tuple[str, ...] = ()
    difference: Difference | None = None
    contrast: float | None = None

    @property
    def judged(self) -> bool:
        """Whether it counts."""
        return not self.skipped


class CandidateResult(Fact):
    """One candidate, judged on every case.

    Attributes:
        party: who.
        budget: what it may differ by.
        cases: one each.
        judgement: the figures over all pictures; None where none was compared.
        reasons: what is over the budget over all pictures, as phrases.
        missing: why it could not be judged at all, as a sentence; empty where it was.
        notes: what else was seen, such as modules where values became zero.
    """

    party: Party
    budget: Budget
    cases: tuple[CaseResult, ...] = ()
    judgement: Judgement | None = None
    reasons: tuple[str, ...] = ()
    missing: str = ""
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The cases that did not pass."""
        return tuple(case for case in self.cases if case.judged and not case.passed)

    @property
    def passed(self) -> bool:
        """It was compared with the reference on a picture with a subject, and nothing is over."""
        compared = self.judgement is not None and self.judgement.subjects > 0
        return compared and not self.failed and not self.reasons and not self.missing

    @property
    def worst(self) -> CaseResult | None:
        """The picture furthest from the reference; None where none was compared."""
        compared = [case for case in self.cases if case.difference is not None]
        return max(compared, key=_distance, default=None)


class Report(Fact):
    """A whole check.

    Attributes:
        created: date and time, UTC.
        command: what was typed.
        machine: facts of the machine, by name.
        versions: of the packages that matter.
        reference: what the candidates were compared with.
        candidates: one each.
        allow_missing: a candidate that could not be judged is no failure.
        budgets: the file whose budgets took the place of ours; empty where none did.
    """

    schema_version: int = SCHEMA
    created: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    reference: Party
    candidates: tuple[CandidateResult, ...]
    allow_missing: bool = False
    budgets: str = ""

    @property
    def missing(self) -> tuple[CandidateResult, ...]:
        """The candidates that could not be judged."""
        return tuple(one for one in self.candidates if one.missing)

    @property
    def passed(self) -> bool:
        """At least one candidate was judged, all that were passed, and none is missing."""
        judged = [one for one in self.candidates if not one.missing]
        whole = self.allow_missing or not self.missing
        return bool(judged) and whole and all(one.passed for one in judged)


def _distance(case: CaseResult) -> tuple[bool, float]:
    """Failed cases first, then by the mean difference of the saliency."""
    return (not case.passed, case.difference.raw_mean if case.difference else 0.0)
