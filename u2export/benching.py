"""`u2export bench`: how fast is each artifact on this machine, and is its mask right?"""

from __future__ import annotations

import datetime
import math
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from u2export import machine, registry, weights
from u2export.artifact import Artifact, write_text
from u2export.backend import Array
from u2export.bench import stats
from u2export.bench.crew import Worker, WorkerError
from u2export.bench.meters import Energy, Gpu
from u2export.bench.report import BenchReport, Latency, Mask, Ratio, Row, Throughput
from u2export.bench.text import table
from u2export.bench.worker import SETTLE_SECONDS, Assignment
from u2export.build import Phase
from u2export.doctor import versions
from u2export.drawn import draw
from u2export.errors import DependencyError, InputError, ParityError, U2ExportError
from u2export.metrics import compare, judge
from u2export.parity.budgets import BUDGETS, asked_of, excess
from u2export.parity.shown import Shown
from u2export.parity.words import printable
from u2export.pipeline import check_picture, opaque, open_picture, preprocess, stretch
from u2export.spec import Device, PictureSpec, Precision

TORCH = "torch"
SECONDS = 30.0  # of steady measuring, all rows together
# A turn is as short as can be: a machine's speed drifts, and two rows that follow each other
# closely have most of that in common.
BLOCK_SECONDS = 0.05  # of one worker's turn, at least
LEAST_SAMPLES = 1  # of a turn
# Before measuring may end early: it ends when an interval happens to be narrow, which few rounds
# make likely by chance.
FEWEST_ROUNDS = 24
LATER = 1.1  # rounds until it is asked again, by those so far
MEDIAN_SAMPLES = 11  # before a median is told with 99 percent confidence; source: as in `stats`
NARROW = 0.01  # half width of a ratio's interval at which measuring may end early
WIDE = 0.03  # and above which longer measuring is asked for
DRAWN = range(3_000_000, 3_000_004)  # seeds of the pictures where the user gives none
DRAWN_SIZE = (1280, 960)
STAGE_ROUNDS = 2
DEVICE_SAMPLES = 100  # by a GPU's events
SWEEP_SECONDS = 1.5  # at most, for each number of streams or batch size
MOST_PICTURES = 24  # that are kept in a worker's memory
# What masks of another input size must keep of those of the reference's own; a whole export of a
# smaller input is the same function of that input, and yet may give worse masks.
LEAST_IOU = 0.975
_NO_SUBJECT = "weights of random values give no masks"
_CALIBRATIONS = 2  # samples of the fixed piece of work in a round
_SORTED = 20_000  # numbers, in each


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and how.

    Attributes:
        artifacts: model files.
        pictures: the user's own picture files.
        reference: a model file, or `torch` for the weights the artifacts were made from.
        weights: what `--weights` named, where the reference is `torch`.
        model: for files u2export did not make: the model they were made from.
        device: where to run; by default each backend's first.
        threads: for computation; by default all this process may use.
        precision: of the arithmetic; by default what each file says.
        batches: pictures a call, for the files that allow them; by default the fewest they take.
        seconds: of steady measuring, all rows together.
        baseline: name of the row that ratios are taken against; the first by default.
        delays: share of its time that every call sleeps, by the artifact's place; to prove that it
            is seen.
        command: what was typed.
    """

    artifacts: tuple[Path, ...]
    pictures: tuple[Path, ...] = ()
    reference: str = TORCH
    weights: str | None = None
    model: str | None = None
    device: Device | None = None
    threads: int | None = None
    precision: Precision | None = None
    batches: tuple[int, ...] = ()
    seconds: float = SECONDS
    baseline: str | None = None
    delays: tuple[float, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class _Turn:
    """What one turn gave: ms, processor ms a picture, share of the time spent waiting for a core.

    And the joules that its pictures took, where they can be read.
    """

    samples: list[float]
    cpu_ms: float
    waited: float
    joules: float | None
    pictures: int


@dataclass
class _Lane:
    """A row while it is being measured."""

    name: str
    artifact: Artifact | None
    file: Path
    precision: Precision | None = None
    worker: Worker | None = None
    told: dict[str, Any] = field(default_factory=dict)
    rounds: list[_Turn] = field(default_factory=list)
    calm: list[int] = field(default_factory=list)  # places of the rounds that count
    answers: dict[str, Array] = field(default_factory=dict)
    failed: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def blocks(self) -> list[list[float]]:
        """The samples of the rounds that count."""
        return [self.rounds[place].samples for place in self.calm]

    @property
    def disturbed(self) -> list[list[float]]:
        """The samples of the other rounds."""
        left = sorted(set(range(len(self.rounds))).difference(self.calm))
        return [self.rounds[place].samples for place in left]


def measure(plan: Plan, phase: Phase = lambda name: None) -> tuple[BenchReport, list[Shown]]:
    """Measure every artifact, in turns.

    Args:
        plan: what and how.
        phase: told which part of the work begins.

    Returns:
        The report, and the worst picture of each row to be looked at.

    Raises:
        InputError: there is nothing to measure, or an option cannot be used.
        ArtifactError: a file was changed.
    """
    _check(plan)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="u2export-") as folder, ExitStack() as stack:
        pictures = plan.pictures[:MOST_PICTURES] or drawn_pictures(Path(folder))
        lanes = [lane for path in plan.artifacts for lane in _lanes(path, plan)]
        _baseline(lanes, plan)  # a name that no row has is refused now, not at the end
        gpu = Gpu.found()
        for lane in lanes:
            _hire(lane, plan, pictures, Path(folder), stack, gpu, phase)
        calibration = _rounds(lanes, plan, Energy(gpu), phase)
        for lane in _able(lanes):
            _finish(lane, Path(folder), min(SWEEP_SECONDS, plan.seconds / 20), phase)
        stack.close()  # the workers: the reference has the machine for itself
        masks, shown, reference = _masks(lanes, plan, pictures, Path(folder), phase)
    baseline = _baseline(lanes, plan)
    report = BenchReport(
        created=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        command=printable(plan.command),
        machine=machine.described(),
        versions=versions(),
        reference=reference,
        pictures=tuple(printable(path.name) for path in pictures),
        baseline=baseline.name if baseline else "",
        rows=tuple(_row(lane, plan, masks.get(lane.name, "it gave no mask")) for lane in lanes),
        ratios=tuple(_ratios(lanes, baseline)),
        calibration_ms=float(np.median(np.concatenate(calibration))),
        calibration=tuple(tuple(block) for block in calibration),
        seconds=round(time.perf_counter() - begun, 1),
        stable=_width(lanes, baseline) <= WIDE,
        notes=tuple(_notes(lanes, baseline, plan)),
    )
    return report, shown


def share(text: str) -> float:
    """Read `10%` or `0.1`.

    Raises:
        InputError: it is neither, or below 0.
    """
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise InputError(f"a slowdown is a share such as 10%, got {text!r}")
    return found


def batches(text: str | None) -> tuple[int, ...]:
    """Read `1,4,8`.

    Raises:
        InputError: these are no whole numbers above 0.
    """
    try:
        found = tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        found = (0,)
    if any(count < 1 for count in found):
        raise InputError(f"batches are whole numbers above 0, such as 1,4,8; got {text!r}")
    return tuple(dict.fromkeys(found))


def text(report: BenchReport) -> str:
    """The report for people at a terminal."""
    return table(report)


def write(
    report: BenchReport,
    shown: Sequence[Shown],
    *,
    json_file: Path | None = None,
    html_file: Path | None = None,
    csv_file: Path | None = None,
    markdown_file: Path | None = None,
) -> None:
    """Write the report in the forms that are asked for.

    Raises:
        InputError: a place cannot be written.
        DependencyError: what a form needs is not installed.
    """
    from u2export.bench import markdown, sheet

    if json_file:
        write_text(json_file, report.model_dump_json(indent=1) + "\n")
    if csv_file:
        write_text(csv_file, sheet.csv_text(report))
    if markdown_file:
        write_text(markdown_file, markdown.page(report))
    if html_file:
        try:
            from u2export.bench import html
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"this form needs {error.name}: pip install 'u2export[parity]'"
            ) from error
        write_text(html_file, html.page(report, shown))


def demand(report: BenchReport) -> None:
    """Refuse a report in which a row was not measured or has the wrong mask.

    Raises:
        DependencyError: a runtime or a device is missing, and nothing else is wrong.
        ParityError: a row failed, or its mask is wrong.
    """
    wrong = [row for row in report.rows if row.mask and not row.mask.passed]
    unjudged = [row for row in report.rows if row.unjudged and row.unjudged != _NO_SUBJECT]
    failed = [row for row in report.rows if row.failed]
    if wrong:
        raise ParityError(f"the mask is wrong: {', '.join(row.name for row in wrong)}")
    if failed and all(_LACKING in row.failed for row in failed):
        raise DependencyError(f"not measured: {failed[0].name}: {failed[0].failed}")
    if failed:
        raise ParityError(f"not measured: {failed[0].name}: {failed[0].failed}")
    if unjudged:
        one = unjudged[0]
        raise ParityError(f"the masks of {one.name} were not compared: {one.unjudged}")


_LACKING = "cannot run here: "


# --- before -------------------------------------------------------------------------------------


def _check(plan: Plan) -> None:
    if not plan.artifacts:
        raise InputError("there is nothing to measure: name a model file")
    if not plan.seconds > 0:
        raise InputError(f"the duration must be above 0 seconds, got {plan.seconds:g}")
    if any(count < 1 for count in plan.batches):
        raise InputError(f"a batch must be 1 or more, got {min(plan.batches)}")
    names = [path.name for path in plan.artifacts]
    for path in plan.pictures[:MOST_PICTURES]:
        check_picture(path)
    if plan.reference != TORCH:
        registry.open_artifact(Path(plan.reference), plan.model)
    twice = next((name for name in names if names.count(name) > 1 and not plan.delays), None)
    if twice:
        raise InputError(f"two model files are called {twice}: rename one, rows go by their names")


def drawn_pictures(folder: Path) -> tuple[Path, ...]:
    """Write the pictures that are taken where the user gives none; give their paths."""
    paths = []
    for seed in DRAWN:
        paths.append(folder / f"drawn-{seed}.jpg")
        draw(seed, DRAWN_SIZE).picture.save(paths[-1], quality=92)
    return tuple(paths)


def _lanes(path: Path, plan: Plan) -> list[_Lane]:
    """A lane for each batch that a file takes; one that says why where it takes none of them."""
    batches: tuple[int | None, ...] = plan.batches or (None,)
    try:
        artifact = registry.with_precision(registry.open_artifact(path, plan.model))
    except DependencyError as error:
        failed = f"{_LACKING}{error}"
        return [_Lane(_name(path, batch, plan), None, path, failed=failed) for batch in batches]
    fixed = None if artifact.foreign else artifact.facts.batch
    fitting = tuple(batch for batch in batches if None in (batch, fixed) or batch == fixed)
    lanes = [
        _Lane(_name(path, batch, plan), artifact, path, plan.precision, told={"batch": batch})
        for batch in fitting or batches
    ]
    if not fitting:
        for lane in lanes:
            lane.failed = f"it takes batches of {fixed}, not of {lane.told['batch']}"
    elif fitting != batches:
        others = ", ".join(_name(path, batch, plan) for batch in batches if batch not in fitting)
        lanes[0].notes.append(f"its batch is fixed, so there is no {others}")
    return lanes


def _name(path: Path, batch: int | None, plan: Plan) -> str:
    """What a row is called."""
    name = printable(path.name) + (f" b{batch}" if batch and batch > 1 else "")
    return f"{name} #{plan.artifacts.index(path)}" if plan.delays else name


def _prepared(spec: PictureSpec, pictures: tuple[Path, ...], folder: Path) -> Path:
    """Write the pictures as a network takes them, so that no worker holds more of them."""
    path = folder / f"inputs-{abs(hash(spec))}.npy"
    if not path.exists():
        np.save(path, np.concatenate([preprocess(open_picture(one), spec) for one in pictures]))
    return path


def _hire(
    lane: _Lane,
    plan: Plan,
    pictures: tuple[Path, ...],
    folder: Path,
    stack: ExitStack,
    gpu: Gpu | None,
    phase: Phase,
) -> None:
    """Start a lane's worker and let it load."""
    if lane.failed or lane.artifact is None:
        return
    backend = registry.load(lane.artifact.backend)
    try:
        asked = registry.run_spec(backend, plan.device, plan.threads, precision=plan.precision)
    except DependencyError as error:
        lane.failed = f"{_LACKING}{error}"
        return
    reason = backend.missing_device(asked.device) or backend.unfit(lane.artifact, asked)
    if reason:
        lane.failed = f"{_LACKING}{reason}"
        return
    phase(f"loading {lane.name}")
    place = plan.artifacts.index(lane.file)
    wanted = Assignment(
        artifact=lane.file,
        backend=lane.artifact.backend,
        inputs=_prepared(lane.artifact.facts.picture, pictures, folder),
        model=plan.model,
        device=plan.device,
        threads=plan.threads,
        precision=plan.precision,
        batch=lane.told["batch"],
        pictures=pictures,
        delay=plan.delays[place] if plan.delays else 0.0,
    )
    lane.worker = stack.enter_context(Worker(wanted))
    before = gpu.used_mb() if gpu and asked.device is Device.CUDA else None
    with _surviving(lane):
        lane.told = lane.worker.open()
    after = gpu.used_mb() if gpu and before is not None else None
    if before is not None and after is not None:
        lane.told["gpu_mb"] = after - before


@contextmanager
def _surviving(lane: _Lane) -> Iterator[None]:
    """Let a worker's failure be its lane's, and nobody else's."""
    try:
        yield
    except WorkerError as error:
        lane.failed = printable(str(error))


def _able(lanes: Iterable[_Lane]) -> list[_Lane]:
    return [lane for lane in lanes if not lane.failed]


# --- in turns -----------------------------------------------------------------------------------


def _rounds(lanes: list[_Lane], plan: Plan, energy: Energy, phase: Phase) -> list[list[float]]:
    """Let the workers take turns until the intervals are narrow or the time is up.

    Returns:
        The fixed work's samples, ms, a block for each round that counts.
    """
    calibration: list[list[float]] = []
    order, begun, ask = random.Random(0), time.perf_counter(), float(FEWEST_ROUNDS)
    while True:
        calibration.append(calibrate())
        for lane in _able(order.sample(lanes, len(lanes))):  # nobody always follows the same
            assert lane.worker
            with _surviving(lane):
                energy.spent()
                found = lane.worker.ask("block", seconds=BLOCK_SECONDS, least=LEAST_SAMPLES)
                lane.rounds.append(_Turn(**found, joules=energy.spent()))
        able = _able(lanes)
        calm = stats.calm(_waited(able))
        for lane in able:
            lane.calm = calm
        passed = time.perf_counter() - begun
        phase(f"measuring in turns, {passed:.0f} of at most {plan.seconds:.0f} s")
        enough = passed >= plan.seconds and len(calibration) >= stats.FEWEST
        asked = len(calibration) >= ask
        if enough or not able or (asked and _narrow(lanes, plan)):
            return [calibration[place] for place in calm] or calibration
        if asked:
            ask *= LATER


def _waited(lanes: list[_Lane]) -> list[list[float]]:
    return [[turn.waited for turn in lane.rounds] for lane in lanes]


def _narrow(lanes: list[_Lane], plan: Plan) -> bool:
    if len(_able(lanes)[0].calm) < FEWEST_ROUNDS:
        return False
    if any(_count(lane) < MEDIAN_SAMPLES for lane in _able(lanes)):
        return False
    return _width(lanes, _baseline(lanes, plan)) <= NARROW


def _count(lane: _Lane) -> int:
    return sum(len(block) for block in lane.blocks)


def _width(lanes: list[_Lane], baseline: _Lane | None) -> float:
    """Half width of the widest interval that is told: of the ratios, or of a single latency."""
    able = [lane for lane in _able(lanes) if lane.blocks]
    if baseline is None or not able:
        return math.inf
    if len(able) == 1:
        found = stats.latency(able[0].blocks)
        return (found.high - found.low) / 2 / found.median
    others = [lane for lane in able if lane is not baseline]
    return max(stats.ratio(lane.blocks, baseline.blocks).half_width for lane in others)


def calibrate() -> list[float]:
    """Do a fixed piece of work on one thread, a few times; ms each.

    Python's own sort: a library's would be other work with each of its releases, and with each
    kind of processor. It waits first, since the threads of who was last may still be spinning.
    """
    numbers = _unsorted()
    time.sleep(SETTLE_SECONDS)
    samples = []
    for _ in range(_CALIBRATIONS):
        begun = time.perf_counter()
        sorted(numbers)
        samples.append(1e3 * (time.perf_counter() - begun))
    return samples


@cache
def _unsorted() -> list[int]:
    return random.Random(0).sample(range(_SORTED), _SORTED)


def _finish(lane: _Lane, folder: Path, sweep: float, phase: Phase) -> None:
    """What is measured once, after the turns: memory first, since the rest needs more of it."""
    assert lane.worker
    phase(f"stages, memory and throughput of {lane.name}")
    path = folder / f"{abs(hash(lane.name))}.npz"
    with _surviving(lane):
        lane.told |= {"memory": lane.worker.ask("memory")}
        lane.told |= {"stages": lane.worker.ask("stages", rounds=STAGE_ROUNDS)}
        lane.told |= lane.worker.ask("on_device", count=DEVICE_SAMPLES)
        lane.worker.ask("answers", path=str(path))
        lane.told |= lane.worker.ask("account")
    if not lane.failed:
        try:
            lane.told |= {"throughput": lane.worker.ask("throughput", seconds=sweep)}
        except WorkerError as error:
            lane.notes.append(f"throughput was not measured: {printable(str(error))}")
    if path.exists():
        with np.load(path) as found:
            lane.answers = dict(found)


# --- masks --------------------------------------------------------------------------------------


def _masks(
    lanes: list[_Lane], plan: Plan, pictures: tuple[Path, ...], folder: Path, phase: Phase
) -> tuple[dict[str, Mask | str], list[Shown], str]:
    """Compare every lane's answers with the reference's: figures or the reason why not, by name."""
    found: dict[str, Mask | str] = {}
    shown: list[Shown] = []
    names: dict[str, None] = {}
    for group in _groups([lane for lane in _able(lanes) if lane.artifact and lane.answers], plan):
        phase("comparing the masks with the reference's")
        try:
            reference = _reference(plan, [lane.artifact for lane in group if lane.artifact])
            native = reference.facts.size
            sizes = {native, *(lane.artifact.facts.size for lane in group if lane.artifact)}
            wanted = sizes if reference.backend == TORCH else {native}
            answers = {size: _answers(reference, size, pictures, plan, folder) for size in wanted}
        except U2ExportError as error:
            found |= {lane.name: printable(str(error)) for lane in group}
            continue
        names[printable(reference.path.name)] = None
        for lane in group:
            try:
                mask, worst = _mask(lane, answers, native, pictures)
                facts = lane.artifact.facts if lane.artifact else None
                random = facts is not None and facts.weights.origin == "random"
                if mask.iou is None and mask.passed:
                    nothing = "no picture has a subject, which proves nothing"
                    mask = mask.model_copy(update={"passed": False, "reasons": (nothing,)})
                    found[lane.name] = _NO_SUBJECT if random else mask
                else:
                    found[lane.name] = mask
                shown.append(worst)
            except ParityError as error:
                found[lane.name] = Mask(passed=False, reasons=(str(error),))
    return found, shown, ", ".join(names) or plan.reference


def _groups(lanes: list[_Lane], plan: Plan) -> list[list[_Lane]]:
    """The lanes by the weights they were made from, which is what each is compared with."""
    found: dict[str, list[_Lane]] = {}
    for lane in lanes:
        facts = lane.artifact.facts if lane.artifact and not lane.artifact.foreign else None
        key = facts.weights.sha256 if facts and plan.reference == TORCH else ""
        found.setdefault(key, []).append(lane)
    return list(found.values())


def _reference(plan: Plan, artifacts: list[Artifact]) -> Artifact:
    if plan.reference != TORCH:
        return registry.open_artifact(Path(plan.reference), plan.model)
    return weights.common(artifacts, plan.model, plan.weights)


def _answers(
    reference: Artifact, size: int, pictures: tuple[Path, ...], plan: Plan, folder: Path
) -> list[Array]:
    """The reference's saliency of every picture at an input size."""
    if reference.backend == TORCH:
        reference = reference.with_facts(size=size)
    inputs = np.load(_prepared(reference.facts.picture, pictures, folder))
    with registry.open_runner(reference, threads=plan.threads) as runner:
        return [runner.single(x[None]) for x in inputs]


def _mask(
    lane: _Lane, answers: dict[int, list[Array]], native: int, pictures: tuple[Path, ...]
) -> tuple[Mask, Shown]:
    """Judge a lane by the reference at its own size; tell its masks by the reference's own size.

    Raises:
        ParityError: NaN, infinite values, or nothing to compare.
    """
    assert lane.artifact
    spec = lane.artifact.facts.picture
    same = answers.get(spec.size)
    maps = [_furthest(lane, place, same) for place in range(len(pictures))]
    budget = BUDGETS[lane.precision] if lane.precision else asked_of(lane.artifact)
    reasons: tuple[str, ...] = ()
    if same:
        differences = [compare(a, b) for a, b in zip(same, maps, strict=True)]
        over = excess(judge(differences, [float(np.ptp(a)) for a in same]), budget)
        reasons = (over,) if over else ()
    resized = [_resized(y, native) for y in maps]
    whole = [compare(a, b) for a, b in zip(answers[native], resized, strict=True)]
    total = judge(whole, [float(np.ptp(a)) for a in answers[native]])
    if spec.size != native and total.mask_iou is not None and not total.mask_iou >= LEAST_IOU:
        told = f"mask_iou {total.mask_iou:.4f}, at least {LEAST_IOU:g}, against {native} pixels"
        reasons = (*reasons, told)
    worst = min(
        range(len(whole)), key=lambda place: (whole[place].mask_iou, -whole[place].mask_mae)
    )
    mask = Mask(
        passed=not reasons,
        reasons=reasons,
        pictures=total.pictures,
        mae=total.mask_mae,
        iou=total.mask_iou,
        worst_iou=total.worst_iou,
        worst_picture=printable(pictures[worst].name),
    )
    pixels = np.asarray(opaque(open_picture(pictures[worst])))
    stretched = [stretch(one, spec) for one in (answers[native][worst], resized[worst])]
    return mask, Shown(lane.name, printable(pictures[worst].name), pixels, *stretched)


def _furthest(lane: _Lane, picture: int, same: list[Array] | None) -> Array:
    """Of a picture's answers from every place in a batch, the one furthest from the reference's."""
    found = [y for name, y in lane.answers.items() if name.split("/")[0] == str(picture)]
    expected = same[picture] if same else found[0]

    def apart(y: Array) -> float:
        most = float(np.abs(y - expected).mean())
        return most if np.isfinite(most) else float("inf")

    return max(found, key=apart)


def _resized(saliency: Array, size: int) -> Array:
    if len(saliency) == size:
        return saliency
    image = Image.fromarray(saliency).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


# --- the report ---------------------------------------------------------------------------------


def _baseline(lanes: list[_Lane], plan: Plan) -> _Lane | None:
    able = [lane for lane in _able(lanes) if lane.blocks]
    if plan.baseline is None:
        return able[0] if able else None
    found = next((lane for lane in lanes if lane.name == plan.baseline), None)
    if found is None:
        names = ", ".join(lane.name for lane in lanes)
        raise InputError(f"no row is called {plan.baseline!r}: choose one of {names}")
    return found if found in able else None


def _ratios(lanes: list[_Lane], baseline: _Lane | None) -> Iterator[Ratio]:
    """Latency a picture by the baseline's."""
    if baseline is None:
        return
    for lane in _able(lanes):
        if lane is baseline or len(baseline.blocks) < stats.FEWEST:
            continue
        by = baseline.told["batch"] / lane.told["batch"]
        found = stats.ratio(lane.blocks, baseline.blocks, by)
        yield Ratio(
            name=lane.name,
            ratio=found.value,
            low=found.low,
            high=found.high,
            verdict=stats.verdict(found),
        )


def _row(lane: _Lane, plan: Plan, mask: Mask | str) -> Row:
    told, memory = lane.told, lane.told.get("memory", {})
    facts = lane.artifact.facts if lane.artifact else None
    swept, events = told.get("throughput") or {}, told.get("on_device") or []
    best = max(swept, key=lambda how: float(swept[how]), default="")
    turns = [lane.rounds[place] for place in lane.calm]
    metered = [(turn.joules, turn.pictures) for turn in turns if turn.joules is not None]
    latency: Latency | None = None
    if lane.blocks and not lane.failed:
        latency = stats.latency(lane.blocks, lane.disturbed)
    return Row(
        name=lane.name,
        file=printable(lane.file.name),
        backend=lane.artifact.backend if lane.artifact else "?",
        precision=str(lane.precision or (facts.precision if facts else "?")),
        device=told.get("device", str(plan.device or Device.CPU)),
        threads=plan.threads or machine.usable_cpus(),
        batch=told.get("batch") or 1,
        size=facts.size if facts else 0,
        files=told.get("files", {}),
        size_mb=told.get("size_mb", 0.0),
        runtime=told.get("runtime", ""),
        ran=told.get("ran", ""),
        import_ms=told.get("import_ms"),
        load_ms=told.get("load_ms"),
        first_ms=told.get("first_ms"),
        latency=latency,
        throughput=Throughput(pictures=swept[best], how=best, tried=swept) if swept else None,
        stages=told.get("stages", {}),
        memory_mb=memory["peak"] - memory["baseline"] if memory else None,
        baseline_mb=memory.get("baseline"),
        gpu_mb=told.get("gpu_mb"),
        gpu_ms=float(np.median(events)) if events else None,
        gpu_samples=tuple(events),
        cpu_ms=float(np.median([turn.cpu_ms for turn in turns])) if turns else None,
        joules=sum(j for j, _ in metered) / sum(n for _, n in metered) if metered else None,
        mask=mask if isinstance(mask, Mask) else None,
        unjudged=mask if isinstance(mask, str) and not lane.failed else "",
        failed=lane.failed,
        notes=tuple(lane.notes),
    )


def _notes(lanes: list[_Lane], baseline: _Lane | None, plan: Plan) -> Iterator[str]:
    width = _width(lanes, baseline)
    if plan.baseline and baseline is None:
        yield f"no ratio is told: {plan.baseline} was not measured"
    if width > WIDE and math.isfinite(width):
        need = plan.seconds * min((width / WIDE) ** 2, 20)
        yield (
            f"the widest interval reaches {width:.1%} to each side of its ratio: "
            f"--duration {need:.0f} would narrow it"
        )
    able = _able(lanes)
    rounds = len(able[0].rounds) if able else 0
    waiting = stats.disturbed(_waited(able))
    if waiting:
        told = f"in {len(waiting)} of {rounds} rounds threads waited for a core"
        counted = len(able[0].calm) == rounds
        yield f"{told}: " + (
            "too few were undisturbed, so all count" if counted else "they count for nothing"
        )
    few = [lane.name for lane in able if _count(lane) < MEDIAN_SAMPLES]
    if few:
        yield f"fewer than {MEDIAN_SAMPLES} samples, too few for a sure median: {', '.join(few)}"
    if len(plan.pictures) > MOST_PICTURES:
        yield f"of {len(plan.pictures)} pictures the first {MOST_PICTURES} were taken"
