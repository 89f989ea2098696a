"""The result of a parity check, in a stable form that is written as JSON and read back."""

from __future__ import annotations

from pydantic import Field

from u2export.compare.budgets import Budget, looser_bounds
from u2export.compare.metrics import Difference, MaskComparison
from u2export.reports.model import FrozenModel

SCHEMA = 1


class RuntimeInfo(FrozenModel):
    """One artifact and what ran it.

    Attributes:
        name: the file's name, or a name that stands for it, such as `torch`.
        backend: the backend that ran it.
        precision: precision of the file's values.
        files: sha256 by file name.
        weights: sha256 of the weights it was made from.
        runtime: the runtime's name and version.
        ran: what really ran, in words.
        how: `executed` here, or `emulated`.
    """

    name: str
    backend: str
    precision: str
    files: dict[str, str] = Field(default_factory=dict)
    weights: str = ""
    runtime: str = ""
    ran: str = ""
    how: str = "executed"


class CaseResult(FrozenModel):
    """The result of one picture or one property.

    Attributes:
        name: the case's name.
        kind: `drawn`, `yours`, `degenerate` or `property`.
        sha256: sha256 of the picture file; empty for a property.
        passed: nothing is over its bound.
        skipped: why it was not checked, as a phrase. A skipped case counts neither way.
        stage: the first stage that differs by more than the budget; empty where none does.
        reasons: what is over its bound, as phrases.
        difference: difference of the networks' outputs.
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
    def checked(self) -> bool:
        """Whether the case counts."""
        return not self.skipped

    @property
    def state(self) -> str:
        """`passed`, `failed` or `skipped`."""
        if not self.checked:
            return "skipped"
        return "passed" if self.passed else "failed"


class CandidateResult(FrozenModel):
    """The result of one candidate on every case.

    Attributes:
        party: the candidate.
        budget: how far it may differ.
        cases: one result per case.
        judgement: the figures over all pictures; None where none was compared.
        reasons: what is over the budget over all pictures, as phrases.
        missing: why it could not be checked at all, as a sentence; empty where it was.
        refused: why its file or its runtime refused it, as a sentence; empty where it ran.
        notes: other observations, such as modules whose values became zero.
    """

    party: RuntimeInfo
    budget: Budget
    cases: tuple[CaseResult, ...] = ()
    judgement: MaskComparison | None = None
    reasons: tuple[str, ...] = ()
    missing: str = ""
    refused: str = ""
    notes: tuple[str, ...] = ()

    @property
    def checked(self) -> tuple[CaseResult, ...]:
        """The cases that count."""
        return tuple(case for case in self.cases if case.checked)

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The cases that did not pass."""
        return tuple(case for case in self.checked if not case.passed)

    @property
    def passed(self) -> bool:
        """A picture with a subject was compared, and nothing is over its bound."""
        compared = self.judgement is not None and self.judgement.subjects > 0
        ran = not self.missing and not self.refused
        return compared and not self.failed and not self.reasons and ran

    @property
    def state(self) -> str:
        """`passed`, `failed`, `missing` or `refused`."""
        if self.missing or self.refused:
            return "missing" if self.missing else "refused"
        return "passed" if self.passed else "failed"

    @property
    def worst(self) -> CaseResult | None:
        """The picture furthest from the reference; None where none was compared."""
        compared = [case for case in self.cases if case.difference is not None]
        return max(compared, key=_distance, default=None)


class ParityReport(FrozenModel):
    """The result of a complete check.

    Attributes:
        created: date and time, UTC.
        command: the command as typed.
        machine: facts of the machine, by name.
        versions: versions of the packages that matter.
        reference: what the candidates were compared with.
        candidates: one result per candidate.
        allow_missing: a candidate that could not be checked is no failure.
        budgets: the file whose budgets replaced the built-in ones; empty where none did.
    """

    schema_version: int = SCHEMA
    created: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    reference: RuntimeInfo
    candidates: tuple[CandidateResult, ...]
    allow_missing: bool = False
    budgets: str = ""

    @property
    def looser(self) -> str:
        """Where budgets of the user allow more than the built-in ones; empty where they do not."""
        bounds = {
            result.party.precision: looser_bounds(result.budget, result.party.precision)
            for result in self.candidates
            if result.judgement
        }
        named = [f"{precision}: {looser}" for precision, looser in bounds.items() if looser]
        if not named:
            return ""
        return f"judged by the looser budgets of {self.budgets or 'the caller'}: {'; '.join(named)}"

    @property
    def missing(self) -> tuple[CandidateResult, ...]:
        """The candidates that could not be checked."""
        return tuple(result for result in self.candidates if result.missing)

    @property
    def passed(self) -> bool:
        """At least one candidate was checked, all checked ones passed, and none is missing."""
        checked = [result for result in self.candidates if not result.missing]
        complete = self.allow_missing or not self.missing
        return bool(checked) and complete and all(result.passed for result in checked)


def _distance(case: CaseResult) -> tuple[bool, float]:
    """Rank failed cases above passed ones, then by the saliency's mean difference."""
    return (not case.passed, case.difference.raw_mean if case.difference else 0.0)
