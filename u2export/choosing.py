"""`u2export auto`: export the candidates, judge them, measure them, and leave the best."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from u2export import benching, build, judging, registry, weights
from u2export.artifact import Artifact
from u2export.backend import Backend
from u2export.bench.recommend import Limits, Recommendation, demand, recommend
from u2export.bench.recommend import text as told
from u2export.bench.report import BenchReport
from u2export.build import Phase
from u2export.errors import DependencyError, ExportError, InputError, ParityError
from u2export.parity.shown import Shown
from u2export.progress import say
from u2export.spec import MODELS, ExportSpec, ModelSpec, Precision, Quantization

PRECISIONS = (Precision.FP32, Precision.FP16)  # and int8, where there are pictures for it


@dataclass(frozen=True)
class Wish:
    """What is wanted.

    Attributes:
        model: the entry of the model table.
        weights: what `--weights` named, or None.
        fallback: take the demo weights where the model's are not to be had.
        limits: what the choice must keep.
        sizes: sides of the input in pixels to try; the model's own if empty.
        pictures: the user's own picture files, which judge.
        calibration: picture files that calibrate int8, others than these; without any it is left
            out.
        out: the folder for the winner.
        threads: for computation; by default all this process may use.
        seconds: of steady measuring at most.
        command: what was typed.
    """

    model: ModelSpec
    weights: str | None = None
    fallback: bool = False
    limits: Limits = field(default_factory=Limits)
    sizes: tuple[int, ...] = ()
    pictures: tuple[Path, ...] = ()
    calibration: tuple[Path, ...] = ()
    out: Path = Path("exported")
    threads: int | None = None
    seconds: float = benching.SECONDS
    command: str = ""


@dataclass(frozen=True)
class Choice:
    """What was found.

    Attributes:
        path: of the winner in its folder; None where nothing keeps the limits.
        report: what was measured.
        shown: the worst picture of each row.
        found: the recommendation.
        refused: the candidates that are not the same function as the weights, and why.
    """

    path: Path | None
    report: BenchReport
    shown: list[Shown]
    found: Recommendation
    refused: tuple[str, ...]


def choose(wish: Wish, phase: Phase = lambda name: None) -> Choice:
    """Export every format, precision and size that runs here, and leave the best in its folder.

    Raises:
        InputError: an option cannot be used, or the folder cannot be written.
        DependencyError: the weights are not to be had.
        ParityError: no candidate is the same function as the weights.
        ExportError: no candidate could be exported.
    """
    both = {one.resolve() for one in wish.pictures} & {one.resolve() for one in wish.calibration}
    if both:
        raise InputError(f"{min(both)} cannot calibrate and judge: give other --pictures")
    try:
        wish.out.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after
    except OSError as error:
        raise build.unwritable(wish.out, error) from error
    phase("finding the weights")
    source = _source(wish)
    with tempfile.TemporaryDirectory(prefix="u2export-") as name:
        folder = Path(name)
        made = list(_made(wish, source, folder, phase))
        if not made:
            raise InputError("no backend can export and run here: u2export doctor says why")
        whole, refused = _judged(made, wish, phase)
        plan = benching.Plan(
            artifacts=tuple(artifact.path for artifact in whole),
            pictures=wish.pictures,
            weights=wish.weights,
            threads=wish.threads,
            seconds=wish.seconds,
            command=wish.command,
        )
        report, shown = benching.measure(plan, phase)
        found = recommend(report, wish.limits)
        path = None
        if found.winner:
            winner = next(one for one in whole if one.path.name == report.row(found.winner).file)
            path = _leave(registry.open_artifact(winner.path), wish.out)
    return Choice(path, report, shown, found, refused)


def text(choice: Choice, wish: Wish) -> str:
    """The choice for people."""
    lines = [f"not the same function as the weights: {one}" for one in choice.refused]
    lines += [benching.text(choice.report), told(choice.report, choice.found, wish.limits)]
    return "\n".join(lines)


def insist(choice: Choice) -> None:
    """Refuse a choice of nothing.

    Raises:
        ParityError: nothing keeps the limits.
    """
    demand(choice.found)


def _source(wish: Wish) -> Artifact:
    if not wish.fallback:
        return weights.find(wish.model, wish.weights)
    source, note = weights.find_default(wish.weights)
    if note:
        say(note)
    return source


def _made(wish: Wish, source: Artifact, folder: Path, phase: Phase) -> Iterator[Artifact]:
    """Export every candidate that can be made and run here."""
    model = MODELS[source.facts.model]
    precisions = (*PRECISIONS, *([Precision.INT8] if wish.calibration else []))
    lossy: set[str] = set()
    if not wish.calibration:
        say("int8 is left out: give it pictures with --calibration")
    for name in registry.names():
        backend, reason = _able(name)
        if backend is None:
            say(f"{name} is left out: {reason}")
            continue
        for size, precision in itertools.product(wish.sizes or (model.picture.size,), precisions):
            able = size == model.picture.size or "size" in backend.options
            if precision not in backend.precisions or not able:
                continue
            phase(f"exporting {name} {precision} for {size} pixels")
            spec = ExportSpec(
                model,
                size,
                precision,
                quantization=_quantization(wish) if precision is Precision.INT8 else None,
                variant=source.facts.weights.variant,
            )
            if spec.stem in lossy:
                continue
            try:
                yield build.build(name, spec, source, folder, phase)
            except ExportError as error:
                say(f"{spec.stem} of {name} is left out: {error}")
                if precision is Precision.INT8:  # another backend would be given the same numbers
                    lossy.add(spec.stem)


def _quantization(wish: Wish) -> Quantization:
    """What is asked of int8: what the choice must keep, where that says anything of masks."""
    plain = Quantization(wish.calibration)
    iou, mae = wish.limits.min_iou, wish.limits.max_mae
    return Quantization(
        wish.calibration,
        min_iou=plain.min_iou if iou is None else iou,
        max_mae=plain.max_mae if mae is None else mae,
    )


def _able(name: str) -> tuple[Backend | None, str]:
    """A backend that can export and run here, or None and why it cannot."""
    try:
        backend = registry.load(name)
        registry.require(backend, export=True)
    except DependencyError as error:
        return None, str(error)
    reason = backend.missing_device(backend.devices[0])
    return (None if reason else backend), reason


def _judged(
    made: list[Artifact], wish: Wish, phase: Phase
) -> tuple[list[Artifact], tuple[str, ...]]:
    """Keep the candidates that are the same function as the weights; certify them."""
    phase("judging the candidates, from file to mask")
    question = judging.Question(
        judging.TORCH,
        tuple(artifact.path for artifact in made),
        wish.pictures,
        weights=wish.weights,
        threads=wish.threads,
        command=wish.command,
    )
    report, _ = judging.examine(question)
    for sentence in judging.certify(question, report):
        say(sentence)
    pairs = list(zip(made, report.candidates, strict=True))
    whole = [artifact for artifact, result in pairs if result.passed]
    refused = tuple(
        f"{artifact.path.name}: {judging.fault(result)}"
        for artifact, result in pairs
        if not result.passed
    )
    if not whole:
        raise ParityError(f"no candidate is the same function as the weights: {refused[0]}")
    return whole, refused


def _leave(winner: Artifact, out: Path) -> Path:
    """Publish the winner in its folder, whole or not at all."""
    try:
        with build.workspace(out / winner.path.name) as folder:
            for name in winner.files:
                shutil.copyfile(winner.path.with_name(name), folder / name)
            build.publish(dataclasses.replace(winner, path=folder / winner.path.name), folder, out)
    except OSError as error:
        raise build.unwritable(out / winner.path.name, error) from error
    return out / winner.path.name
