"""`u2export parity`: is each candidate the same function as the reference, from file to mask?"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from u2export import build, machine, registry, steady, weights
from u2export.artifact import Artifact, Facts, manifest_path, write_text
from u2export.backend import Array, Runner
from u2export.doctor import versions
from u2export.errors import DependencyError, ExportError, InputError, ParityError, U2ExportError
from u2export.metrics import Difference, compare, judge
from u2export.parity import certificate, replay
from u2export.parity.budgets import BUDGETS, Budget, asked_of, excess
from u2export.parity.budgets import read as read_budgets
from u2export.parity.cases import QUICK, SEEDS, Case, degenerate, drawn, yours
from u2export.parity.report import CandidateResult, CaseResult, Party, Report
from u2export.parity.shown import Shown
from u2export.parity.stages import Side, Way, decode, follow, onward, part
from u2export.parity.text import table
from u2export.parity.words import fault as fault
from u2export.parity.words import printable
from u2export.pipeline import check_picture, open_picture, preprocess
from u2export.progress import say
from u2export.spec import MODELS, Device, ExportSpec, PictureSpec, Precision, Resize

if TYPE_CHECKING:  # it needs torch and onnx, which judging artifacts by each other does not
    from u2export.parity.bisect import Bisection

TORCH = "torch"
BATCH = 8  # pictures in the batch that is compared with single calls
BLOCK = 128  # cases whose answers of the reference are kept at once
GALLERY = 6  # pictures kept to be shown, for each candidate
Track = Callable[[Sequence[Any], str], Generator[Any, None, None]]


@dataclass(frozen=True)
class Question:
    """What is to be judged, and how.

    Attributes:
        reference: a model file, or `torch` for the weights the candidates were made from.
        candidates: model files.
        pictures: the user's own picture files.
        thorough: all cases and properties instead of the quick ones.
        budgets: what each precision may differ by.
        weights: what `--weights` named, where the reference is `torch`.
        model: for files u2export did not make: the model they were made from.
        resample: how pictures become square for the candidates, instead of what they record.
        emulate: precisions to emulate on the reference's weights, as further candidates.
        device: where to run the candidates; by default each backend's first.
        threads: for computation; by default all this process may use.
        allow_missing: a candidate whose runtime or device is not there is no failure.
        command: what was typed.
        budget_file: where the budgets are from, if they are not ours.
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
    device: Device | None = None
    threads: int | None = None
    allow_missing: bool = False
    command: str = ""
    budget_file: Path | None = None


@dataclass(frozen=True)
class Kept:
    """One case of one candidate, to be shown or replayed.

    Attributes:
        candidate: its name in the report.
        case: the case's name.
        content: the picture file.
        reference: the reference's way through the stages.
        found: the candidate's way.
    """

    candidate: str
    case: str
    content: bytes
    reference: Way
    found: Way

    @property
    def picture(self) -> NDArray[np.uint8]:
        """The decoded picture, (H,W,3)."""
        return self.reference.picture


def certify(question: Question, report: Report) -> list[str]:
    """Write what passed into the artifacts' manifests.

    Returns:
        A sentence for each that could not be written.
    """
    said = []
    for path, result in zip(question.candidates, report.candidates, strict=False):
        artifact = _opened(path, question) if result.passed else None
        if not isinstance(artifact, Artifact) or not artifact.files:
            continue
        try:
            certificate.certify(artifact, result, report)
        except InputError as error:
            said.append(f"the certificate was not written: {error}")
    return said


def leave_replays(question: Question, report: Report, kept: list[Kept], folder: Path) -> list[Path]:
    """Write a replay file for the worst failure of each candidate.

    Raises:
        InputError: the folder cannot be written.
    """
    written = []
    for path, result in zip(question.candidates, report.candidates, strict=False):
        failed = {case.name: case for case in result.failed}
        name = printable(path.name)
        one = next((k for k in kept if k.candidate == name and k.case in failed), None)
        artifact = _opened(path, question)
        if one is None or not isinstance(artifact, Artifact):
            continue
        notes = replay.Notes(
            created=report.created,
            command=report.command,
            machine=report.machine,
            versions=report.versions,
            party=result.party,
            budget=result.budget,
            case=failed[one.case],
            artifact=name,
            model=artifact.facts.model if artifact.foreign else None,
            resample=question.resample,
        )
        target = folder / f"{name}.replay.zip"
        replay.write(target, notes, artifact, one.content, one.reference, one.found)
        written.append(target)
    return written


def budgets(path: Path | None) -> dict[Precision, Budget]:
    """The budgets of a file, or ours.

    Raises:
        InputError: it is no budget file.
    """
    return read_budgets(path) if path else dict(BUDGETS)


def bisected(
    reference: str,
    candidate: Path,
    picture: Path,
    *,
    given: str | None = None,
    model: str | None = None,
    limits: dict[Precision, Budget] | None = None,
    whole: bool = False,
) -> Bisection:
    """Name the first PyTorch module at which a model file leaves its reference.

    Args:
        reference: `torch` for the weights the candidate was made from, or another model file of
            the same weights.
        candidate: the model file.
        picture: a picture file on which it fails.
        given: the weights file; by default the weights the files were made from.
        model: for a file u2export did not make: the model it was made from.
        limits: budgets by precision, instead of ours.
        whole: measure every module, also after the first over the budget.

    Raises:
        U2ExportError: as `u2export.parity.bisect.bisect`, `u2export.weights.of` and
            `u2export.pipeline.open_picture` say.
    """
    from u2export.parity.bisect import bisect

    other = None if reference == TORCH else Path(reference)
    question = Question(reference, (candidate,), weights=given, model=model)
    found = [_opened(path, question) for path in ((candidate, other) if other else (candidate,))]
    artifacts = [one for one in found if isinstance(one, Artifact)]
    for one in found:
        if isinstance(one, DependencyError):
            raise one
    facts = artifacts[0].facts
    x = preprocess(open_picture(picture), facts.picture)
    if artifacts[-1].facts.size != facts.size:
        raise InputError(f"{reference} and {candidate} are for pictures of different sizes")
    return bisect(
        weights.common(artifacts, model, given),
        artifacts[0],
        x,
        _budget(limits or BUDGETS, artifacts[0]),
        reference=artifacts[1] if other else None,
        whole=whole,
    )


def show_growth(found: Bisection, title: str, path: Path) -> None:
    """Write a page with the plot of the error's growth.

    Raises:
        InputError: the place cannot be written.
        DependencyError: what the plot needs is not installed.
    """
    try:
        from u2export.parity import growth
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"this form needs {error.name}: pip install 'u2export[parity]'"
        ) from error
    write_text(path, growth.page(found, title))


def demand_bisected(found: Bisection) -> None:
    """Refuse a file that leaves its reference somewhere.

    Raises:
        ParityError: it does.
    """
    if found.culprit:
        raise ParityError(f"the first module over the budget is {found.culprit}")
    if found.over:
        raise ParityError("the file is over the budget, but no module of it alone explains it")
    if not found.modules:
        raise ParityError("no module could be compared, which proves nothing")


def text(report: Report) -> str:
    """The report for people at a terminal."""
    return table(report)


def write(
    report: Report,
    kept: list[Kept],
    *,
    json_file: Path | None = None,
    junit_file: Path | None = None,
    html_file: Path | None = None,
) -> None:
    """Write the report in the forms that are asked for.

    Raises:
        InputError: a place cannot be written.
        DependencyError: what a form needs is not installed.
    """
    try:
        if json_file:
            write_text(json_file, report.model_dump_json(indent=1) + "\n")
        if junit_file:
            from u2export.parity import junit

            junit.write(report, junit_file)
        if html_file:
            from u2export.parity import html

            write_text(html_file, html.page(report, _shown(kept)))
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"this form needs {error.name}: pip install 'u2export[parity]'"
        ) from error


def _shown(kept: list[Kept]) -> list[Shown]:
    return [
        Shown(k.candidate, k.case, k.picture, k.reference.stretched, k.found.stretched)
        for k in kept
    ]


def tell_github(report: Report, kept: list[Kept]) -> None:
    """Print annotations, and append to the summary of the running step, if there is one.

    Raises:
        InputError: the summary cannot be written.
    """
    from u2export.parity import github

    for line in github.annotations(report):
        print(line)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(github.summary(report, _shown(_urgent(report, kept))))
        except OSError as error:
            raise InputError(f"{summary} cannot be written: {error.strerror}") from error


def _urgent(report: Report, kept: list[Kept]) -> list[Kept]:
    """The cases that failed, one of each candidate first; where none did, the worst ones."""
    failed = {(one.party.name, case.name) for one in report.candidates for case in one.failed}
    seen: dict[str, int] = {}
    rank = {}
    for k in kept:
        seen[k.candidate] = seen.get(k.candidate, 0) + 1
        rank[id(k)] = ((k.candidate, k.case) not in failed, seen[k.candidate])
    return sorted(kept, key=lambda k: rank[id(k)])


def demand(report: Report) -> None:
    """Refuse a report that did not pass.

    Raises:
        DependencyError: a candidate could not be judged here, and nothing else is wrong.
        ParityError: a candidate failed, or nothing was judged.
    """
    if report.passed:
        return
    judged = [one for one in report.candidates if not one.missing]
    failed = [one.party.name for one in judged if not one.passed]
    if failed:
        raise ParityError(f"not the same function as {report.reference.name}: {', '.join(failed)}")
    if report.missing and not report.allow_missing:
        raise DependencyError(f"not judged: {report.missing[0].missing}")
    raise ParityError("nothing was judged, which proves nothing")


def verified(path: Path) -> certificate.Certificate:
    """Check an artifact's bytes and its certificate, running nothing.

    Raises:
        InputError: there is no such file.
        ArtifactError: it was changed, or the certificate is for other bytes.
        ParityError: it was never judged.
    """
    try:
        found = registry.open_artifact(path)
    except InputError as error:
        if not path.is_file() or manifest_path(path).exists():
            raise
        raise ParityError(
            f"{path} carries no certificate: u2export did not make it, or it lost its manifest"
        ) from error
    return certificate.read(found)


def certificate_text(path: Path, found: certificate.Certificate) -> str:
    """A certificate for people."""
    figures = found.judgement
    return (
        f"{path} is whole, and passed on {found.created} against {found.reference} in "
        f"{found.cases} cases: raw max {figures.raw_max:.2g}, mask MAE {figures.mask_mae:.2g}, "
        f"IoU {figures.mask_iou:.4f} (worst {figures.worst_iou:.4f}); {found.ran}"
    )


@dataclass(frozen=True)
class Replayed:
    """A failure judged again.

    Attributes:
        notes: of the first time.
        passed: it passes here.
        stage: the first that differs by more than it may; empty where none does.
        reasons: what is over its bound here, as phrases.
        changed: what is different here, as phrases.
    """

    notes: replay.Notes
    passed: bool
    stage: str
    reasons: tuple[str, ...]
    changed: tuple[str, ...]


def replayed(path: Path, *, device: Device | None = None, threads: int | None = None) -> Replayed:
    """Judge a replay file's case again, with its own artifact, on this machine.

    Raises:
        InputError: there is no such file.
        ArtifactError: it is no replay file.
        DependencyError: its runtime or device is not there.
    """
    with tempfile.TemporaryDirectory(prefix="u2export-") as folder:
        case = replay.Replay(path, Path(folder))
        artifact = registry.open_artifact(case.artifact, case.notes.model)
        spec = artifact.facts.picture
        if case.notes.resample:
            spec = dataclasses.replace(spec, resize=case.notes.resample)
        with registry.open_runner(artifact, device, threads) as runner:
            found = follow(case.content, Side(artifact.path.name, runner.single, spec))
        parting = case.judge(found)
        there, here = case.notes.versions, versions()
        different = [
            f"{name} {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        ]
        return Replayed(
            notes=case.notes,
            passed=parting.stage is None,
            stage=parting.stage.value if parting.stage else "",
            reasons=parting.reasons,
            changed=tuple(different + case.changed(found)),
        )


def replayed_text(found: Replayed) -> str:
    """A failure judged again, for people."""
    case = found.notes.case
    verdict = "passes here" if found.passed else f"fails here too, at stage '{found.stage}'"
    lines = [f"'{case.name}' of {found.notes.party.name} {verdict}"]
    lines += [f"there: {reason}" for reason in case.reasons]
    lines += [f"here: {reason}" for reason in found.reasons]
    lines += [f"different: {line}" for line in found.changed] or ["nothing is different here"]
    return "\n".join(lines)


def demand_replayed(found: Replayed) -> None:
    """Refuse a failure that is one here too.

    Raises:
        ParityError: it fails.
    """
    if not found.passed:
        raise ParityError(f"'{found.notes.case.name}' fails here too: {found.reasons[0]}")


@dataclass
class _Candidate:
    """A candidate while it is being judged; `opened` is None where it cannot run here."""

    party: Party
    budget: Budget
    spec: PictureSpec
    opened: Callable[[], AbstractContextManager[Side]] | None = None
    artifact: Artifact | None = None
    missing: str = ""
    cases: list[CaseResult] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    notes: Callable[[], tuple[str, ...]] = lambda: ()


def _untracked(items: Sequence[Any], what: str) -> Generator[Any, None, None]:
    yield from items


def examine(question: Question, track: Track = _untracked) -> tuple[Report, list[Kept]]:
    """Judge every candidate on every case.

    Args:
        question: what and how.
        track: shows the progress of going through items.

    Returns:
        The report, and the cases worth showing: those that failed, then the worst that passed.

    Raises:
        InputError: there is nothing to judge, or a file or option cannot be used.
        ArtifactError: a file was changed.
        DependencyError: the reference cannot run here.
        ParityError: the reference's runtime does something else than it was asked.
    """
    if not question.candidates and not question.emulate:
        raise InputError("there is nothing to judge: name a candidate, or --emulate a precision")
    names = [path.name for path in question.candidates]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two candidates are called {twice}: rename one, reports go by names")
    for path in question.pictures:
        check_picture(path)  # before minutes of work, not after
    opened = [_opened(path, question) for path in question.candidates]
    reference = _reference(question, [one for one in opened if isinstance(one, Artifact)])
    candidates = [_ready(one, question) for one in opened]
    candidates += [_emulated(precision, question, reference) for precision in question.emulate]
    able = [one for one in candidates if one.opened]
    cases = [*drawn(len(SEEDS) if question.thorough else QUICK), *yours(question.pictures)]
    cases += degenerate(large=question.thorough)
    steps = len(cases) * (len({one.spec.size for one in able}) + len(able))
    with closing(track(range(steps + 1), "comparing")) as ticks:
        for start in range(0, len(cases), BLOCK):
            _block(cases[start : start + BLOCK], reference, able, question, partial(next, ticks))
        next(ticks)
    for one in track([one for one in able if one.artifact], "checking properties"):
        one.cases.extend(_properties(one, question))
    report = Report(
        created=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        command=printable(question.command),
        machine=machine.described(),
        versions=versions(),
        reference=_party(reference, "", ""),
        candidates=tuple(_result(one) for one in candidates),
        allow_missing=question.allow_missing,
        budgets=printable(str(question.budget_file or "")),
    )
    return report, [kept for one in candidates for kept in one.kept]


def _opened(path: Path, question: Question) -> Artifact | DependencyError:
    try:
        return registry.with_precision(registry.open_artifact(path, question.model))
    except DependencyError as error:
        return error


def _reference(question: Question, artifacts: list[Artifact]) -> Artifact:
    if question.reference != TORCH:
        path = Path(question.reference)
        model = question.model if not manifest_path(path).exists() else None
        found = registry.open_artifact(path, model)
        return registry.surveyed(found) if found.foreign else found
    return weights.common(artifacts, question.model, question.weights)


def _block(
    cases: list[Case],
    reference: Artifact,
    candidates: list[_Candidate],
    question: Question,
    tick: Callable[[], object],
) -> None:
    """Judge some cases: the reference answers all of them, then each candidate is compared.

    One runtime at a time is in memory, and no more pictures than one.
    """
    answers: dict[tuple[int, int], Array | U2ExportError] = {}
    for size in sorted({one.spec.size for one in candidates}):
        with _answering(reference, size, question) as side:
            for place, case in enumerate(cases):
                tick()
                answers[place, size] = _answer(side, case)
    for one in candidates:
        assert one.opened
        spec = dataclasses.replace(reference.facts.picture, size=one.spec.size)
        with one.opened() as side:
            for place, case in enumerate(cases):
                tick()
                _compare(case, answers[place, one.spec.size], spec, side, one)


@contextmanager
def _answering(reference: Artifact, size: int, question: Question) -> Iterator[Side]:
    """The reference's side for an input size, which weights can have any of."""
    if reference.backend == TORCH:
        reference = reference.with_facts(size=size)
    with registry.open_runner(reference, threads=question.threads) as runner:
        yield Side("the reference", runner.single, reference.facts.picture)


def _answer(side: Side, case: Case) -> Array | U2ExportError:
    """The saliency that a side gives for a case, or what it fails with."""
    try:
        return side.network(side.prepare(decode(case.read(), side).picture, side.spec))
    except U2ExportError as error:
        return error


def _budget(budgets: dict[Precision, Budget], one: Artifact) -> Budget:
    """What a file says was asked of it, unless the user gave budgets."""
    return asked_of(one) if budgets == BUDGETS else budgets[one.facts.precision]


def _ready(one: Artifact | DependencyError, question: Question) -> _Candidate:
    if isinstance(one, DependencyError):
        nobody = Party(name="?", backend="?", precision="?")
        return _Candidate(nobody, BUDGETS[Precision.FP32], PictureSpec(), missing=str(one))
    spec, budget = one.facts.picture, _budget(question.budgets, one)
    if question.resample:
        spec = dataclasses.replace(spec, resize=question.resample)
    try:
        with registry.open_runner(one, question.device, question.threads) as runner:
            account = runner.executed()
    except DependencyError as error:
        return _Candidate(_party(one, "", ""), budget, spec, missing=str(error))
    party = _party(one, account.runtime, account.summary())

    @contextmanager
    def opened() -> Iterator[Side]:
        with registry.open_runner(one, question.device, question.threads) as runner:
            yield Side(party.name, runner.single, spec)

    return _Candidate(party, budget, spec, opened, one)


def _emulated(precision: Precision, question: Question, reference: Artifact) -> _Candidate:
    """The reference's weights as a device would compute them whose arithmetic is `precision`."""
    if reference.backend != TORCH:
        raise InputError("precisions are emulated on weights: let the reference be torch")
    from u2export import checkpoint
    from u2export.parity.emulate import Emulated

    network = Emulated(checkpoint.network(reference, say), precision)
    party = _party(reference, "", f"every operation rounded to {precision}")
    party = party.model_copy(
        update={"name": f"emulated {precision}", "precision": str(precision), "how": "emulated"}
    )
    spec = reference.facts.picture
    side = Side(party.name, lambda x: network(x)[0, 0], spec)

    def notes() -> tuple[str, ...]:
        lost = sorted(network.lost.items(), key=lambda item: -item[1])
        return tuple(f"{share:.0%} of what {name} gave became zero" for name, share in lost[:5])

    budget = question.budgets[precision]
    return _Candidate(party, budget, spec, lambda: nullcontext(side), notes=notes)


def _party(artifact: Artifact, runtime: str, ran: str) -> Party:
    return Party(
        name=printable(artifact.path.name),
        backend=artifact.backend,
        precision=str(artifact.facts.precision),
        files=dict(artifact.files),
        weights=artifact.facts.weights.sha256,
        runtime=runtime,
        ran=ran,
    )


def _compare(
    case: Case, answer: Array | U2ExportError, spec: PictureSpec, side: Side, one: _Candidate
) -> None:
    """Compare a candidate with the reference's answer, whose pipeline is `spec`'s."""
    content = case.read()
    sha256 = hashlib.sha256(content).hexdigest()
    blank = CaseResult(name=case.name, kind=case.kind, sha256=sha256, passed=False)
    try:
        if isinstance(answer, U2ExportError):
            raise answer
        given = Side("the reference", lambda x: answer, spec)
        decoded = decode(content, side)
        pixels = decoded.pixels
        inputs = [one.prepare(decoded.picture, one.spec) for one in (given, side)]
        del decoded  # a large picture need not lie there twice
        reference, found = onward(pixels, inputs[0], given), onward(pixels, inputs[1], side)
        parting = part(reference, found, one.budget)
    except U2ExportError as error:
        one.cases.append(blank.model_copy(update={"reasons": (str(error),)}))
        return
    result = blank.model_copy(
        update={
            "passed": parting.stage is None,
            "stage": parting.stage.value if parting.stage else "",
            "reasons": parting.reasons,
            "difference": parting.difference,
            "contrast": parting.contrast,
        }
    )
    one.cases.append(result)
    if not result.passed or case.kind != "degenerate":
        one.kept.append(Kept(one.party.name, case.name, content, reference, found))
        one.kept.sort(key=lambda kept: _urgency(kept, one))
        del one.kept[GALLERY:]


def _urgency(kept: Kept, one: _Candidate) -> tuple[bool, float]:
    case = next(case for case in one.cases if case.name == kept.case)
    return (case.passed, -(case.difference.raw_mean if case.difference else 1.0))


def _result(one: _Candidate) -> CandidateResult:
    compared = [case for case in one.cases if case.difference is not None]
    judgement = None
    reasons: list[str] = []
    if compared:
        differences = [case.difference for case in compared if case.difference is not None]
        judgement = judge(differences, [case.contrast or 0.0 for case in compared])
        over = excess(judgement, one.budget)
        reasons += [over] if over else []
        if not judgement.subjects:
            reasons.append("no picture has a subject, which proves nothing")
    return CandidateResult(
        party=one.party,
        budget=one.budget,
        cases=tuple(one.cases),
        judgement=judgement,
        reasons=tuple(reasons),
        missing=one.missing,
        notes=one.notes(),
    )


# --- properties ---------------------------------------------------------------------------------


def _properties(one: _Candidate, question: Question) -> Iterator[CaseResult]:
    assert one.artifact
    inputs = [preprocess(_decoded(case.read()), one.spec) for case in drawn(len(SEEDS))]
    with registry.open_runner(one.artifact, question.device, question.threads) as runner:
        single = runner.single(inputs[0])
        yield _property("the same twice", [(single, runner.single(inputs[0]))], one.budget)
        if not question.thorough:
            return
        yield _batched(runner, inputs, one.budget)
    for name, judged in (("one thread and all", _threaded), ("rebuilt", _rebuilt)):
        try:
            yield judged(one, inputs[0], single, question)
        except DependencyError as error:
            yield _skipped(name, str(error))
        except U2ExportError as error:
            yield CaseResult(name=name, kind="property", passed=False, reasons=(str(error),))


def _decoded(content: bytes) -> Image.Image:
    return open_picture(io.BytesIO(content))


def _batched(runner: Runner, inputs: list[Array], budget: Budget) -> CaseResult:
    name = "a batch and its pictures alone"
    count = min(BATCH, runner.most or BATCH)
    if runner.most == 1:
        return _skipped(name, "it takes one picture at a time")
    if runner.fewest > count:
        return _skipped(name, f"it takes no batch of {count}")
    chosen = [inputs[i % len(inputs)] for i in range(count)]
    together = runner(np.concatenate(chosen))
    pairs = [(runner.single(x), y[0]) for x, y in zip(chosen, together, strict=True)]
    return _property(name, pairs, budget)


def _threaded(one: _Candidate, x: Array, expected: Array, question: Question) -> CaseResult:
    assert one.artifact
    name = "one thread and all"
    if machine.usable_cpus() == 1:
        return _skipped(name, "this machine has one CPU")
    with registry.open_runner(one.artifact, question.device, 1) as alone:
        found = alone.single(x)
    return _property(name, [(expected, found)], one.budget)


def _rebuilt(one: _Candidate, x: Array, expected: Array, question: Question) -> CaseResult:
    assert one.artifact
    name, facts = "rebuilt", one.artifact.facts
    if one.artifact.foreign:
        return _skipped(name, "u2export did not make it")
    try:
        source = weights.of(facts, question.weights)
    except U2ExportError as error:
        return _skipped(name, str(error))
    with tempfile.TemporaryDirectory(prefix="u2export-") as folder:
        again = _built_again(one.artifact, source, Path(folder))
        with registry.open_runner(again, question.device, question.threads) as runner:
            found = runner.single(x)
    return _property(name, [(expected, found)], one.budget)


_OURS = ("U2EXPORT_", "XDG_")  # where this user's caches are, and whether one may fetch


class _Order(BaseModel):
    """What a process of its own is to build again."""

    model_config = ConfigDict(frozen=True)

    backend: str
    facts: Facts
    weights: str
    folder: Path
    environment: dict[str, str]


def _built_again(artifact: Artifact, source: Artifact, folder: Path) -> Artifact:
    """Build an artifact again in a process of its own, whose memory is given back."""
    order = _Order(
        backend=artifact.backend,
        facts=artifact.facts,
        weights=_named(source),
        folder=folder,
        environment={k: v for k, v in os.environ.items() if k.startswith(_OURS)},
    )
    done = steady.call(f"{__name__}:build_again", order.model_dump_json(), b"")
    answer = done.stdout.decode(errors="replace")
    if done.returncode:
        raise ExportError(f"{artifact.path} could not be built again: {answer or 'no reason'}")
    return registry.open_artifact(Path(answer))


def _named(source: Artifact) -> str:
    """What `--weights` would say."""
    facts = source.facts.weights
    return facts.name if facts.origin == "random" else str(source.path.resolve())


def build_again(order: str) -> None:
    """Be that process: answer the artifact's path, or the reason why there is none."""
    wanted = _Order.model_validate_json(order)
    os.environ.update(wanted.environment)
    try:
        source = weights.of(wanted.facts, wanted.weights)
        made = build.build(wanted.backend, _spec(wanted.facts), source, wanted.folder)
    except U2ExportError as error:
        sys.stdout.write(str(error))
        sys.exit(error.exit_status)
    sys.stdout.write(str(made.path))


def _spec(facts: Facts) -> ExportSpec:
    """The request that an artifact answered, but for its opset, which it does not record."""
    profile = facts.build.get("profile")
    low, typical, high = map(int, (profile or "1:1:1").split(":"))
    return ExportSpec(
        MODELS[facts.model],
        facts.size,
        facts.precision,
        facts.batch,
        all_outputs=facts.outputs > 1,
        profile=(low, typical, high) if profile else None,
    )


def _skipped(name: str, why: str) -> CaseResult:
    return CaseResult(name=name, kind="property", passed=True, skipped=why)


def _property(name: str, pairs: list[tuple[Array, Array]], budget: Budget) -> CaseResult:
    """Judge maps that should be the same by the budget of their precision."""
    worst: Difference | None = None
    for reference, found in pairs:
        difference = compare(reference, found)
        if worst is None or difference.raw_mean > worst.raw_mean:
            worst = difference
    assert worst is not None
    reasons = [
        f"{name} {getattr(worst, name):.3g}, allowed {getattr(budget, name):g}"
        for name in ("raw_max", "raw_mean")
        if getattr(budget, name) is not None and not getattr(worst, name) <= getattr(budget, name)
    ]
    return CaseResult(
        name=name,
        kind="property",
        passed=not reasons,
        stage="raw saliency" if reasons else "",
        reasons=tuple(reasons),
    )
