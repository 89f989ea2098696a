"""The request for a parity check, and how its files and budgets are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from u2export.compare.budgets import BUDGETS, Budget, read_budgets
from u2export.core import registry
from u2export.core.artifact import Artifact
from u2export.core.enums import Precision, Resize
from u2export.core.requests import RunRequest
from u2export.errors import ArtifactError, DependencyError

TORCH_REFERENCE = "torch"  # names the weights as the reference, not a model file


@dataclass(frozen=True)
class ParityRequest:
    """What to check, and how.

    Attributes:
        reference: a model file, or `torch` for the weights the candidates were made from.
        candidates: model files.
        pictures: the user's own picture files.
        thorough: check all cases and properties, not only the quick ones.
        budgets: how far each precision may differ.
        weights: the value of `--weights`, where the reference is `torch`.
        model: the model that files of other tools were made from.
        resample: resizing for the candidates, instead of what they record.
        emulate: precisions to emulate on the reference's weights, as further candidates.
        run: how to run the candidates.
        allow_missing: a candidate whose runtime or device is absent is no failure.
        command: the command as typed.
        budget_file: the file the budgets are from; None for the built-in ones.
    """

    reference: str
    candidates: tuple[Path, ...]
    pictures: tuple[Path, ...] = ()
    thorough: bool = False
    budgets: dict[Precision, Budget] = field(default_factory=lambda: dict(BUDGETS))
    weights: str | None = None
    model: str | None = None
    resample: Resize | None = None
    emulate: tuple[Precision, ...] = ()
    run: RunRequest = field(default_factory=RunRequest)
    allow_missing: bool = False
    command: str = ""
    budget_file: Path | None = None


def load_budgets(path: Path | None) -> dict[Precision, Budget]:
    """Read a file's budgets; the built-in ones without a file.

    Raises:
        InputError: it is no budget file.
    """
    return read_budgets(path) if path else dict(BUDGETS)


def open_candidate(
    path: Path, request: ParityRequest
) -> Artifact | DependencyError | ArtifactError:
    """Open a candidate's file.

    Returns:
        The artifact; or the error, where a package that reads it is not installed, or the file
        was changed or is not what it says.

    Raises:
        InputError: there is no such file, or its model is unknown.
    """
    try:
        return registry.with_stored_precision(registry.open_artifact(path, request.model))
    except (DependencyError, ArtifactError) as error:
        return error
