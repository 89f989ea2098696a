"""What a benchmark measured, in a stable form that is written as JSON and read back.

Times are in milliseconds, memory and files in MB of 10^6 bytes, all of one picture unless it says
otherwise.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from u2export.errors import InputError
from u2export.parity.report import Fact

SCHEMA = 2  # from 2 on the fixed piece of work is Python's own sort
STAGES = ("decode", "resize", "normalise", "infer", "stretch", "upsample", "encode")


class Latency(Fact):
    """Time of one call, steady.

    Attributes:
        median: of all samples.
        low: lower end of the median's 95 percent interval, from the blocks.
        high: upper end.
        p90: None where there are too few samples to tell; so the others.
        blocks: the raw samples, block by block, in the order they were taken.
        disturbed: likewise, of the rounds in which threads waited for a core; these count for
            nothing.
    """

    median: float
    low: float
    high: float
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    blocks: tuple[tuple[float, ...], ...] = ()
    disturbed: tuple[tuple[float, ...], ...] = ()

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(len(block) for block in self.blocks)


class Throughput(Fact):
    """The most pictures a second that a small sweep found.

    Attributes:
        pictures: a second.
        how: of the best, such as `2 streams` or `batch 4`.
        tried: pictures a second of everything that was tried.
    """

    pictures: float
    how: str
    tried: dict[str, float] = Field(default_factory=dict)


class Mask(Fact):
    """How the masks compare with the reference's on the same pictures.

    Attributes:
        passed: within the budget of the artifact's precision.
        reasons: what is over the budget, as phrases.
        pictures: how many were compared.
        mae: mean absolute difference of the masks, mean over the pictures with a subject.
        iou: intersection over union at 0.5, likewise.
        worst_iou: of the worst picture with a subject.
        worst_picture: its name.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    pictures: int = 0
    mae: float | None = None
    iou: float | None = None
    worst_iou: float | None = None
    worst_picture: str = ""


class Row(Fact):
    """One artifact at one batch size.

    Attributes:
        name: unique in a report: the file's name, with ` b4` after it at a batch of 4.
        file: the file's name.
        backend: that ran it.
        precision: of the file's values.
        device: where it ran.
        threads: for computation.
        batch: pictures a call.
        size: side of the network's input in pixels.
        files: sha256 by file name.
        size_mb: of all its files together.
        runtime: name and version.
        ran: what really ran, in words.
        import_ms: importing the runtime.
        load_ms: loading or compiling the model; OpenVINO with none compiled before.
        first_ms: the first call.
        latency: of a call with `batch` pictures; None where nothing was measured.
        throughput: None where it was not measured.
        stages: median time of each stage of a picture's way, by the names in `STAGES`.
        memory_mb: the worker's largest resident memory above what Python alone needed.
        baseline_mb: what Python with u2export alone needed.
        gpu_mb: of a GPU's memory; None on a CPU, and where nobody tells.
        gpu_ms: median time of a call on the GPU by its own events, without copies; None on a CPU.
        gpu_samples: raw, of that.
        cpu_ms: processor time a picture, all threads together.
        joules: a picture, of the whole machine, where it tells.
        mask: None where it was not compared.
        unjudged: why it was not compared, as a phrase.
        failed: why there is no measurement, as a phrase; empty where there is one.
        notes: what else should be known, as sentences.
    """

    name: str
    file: str
    backend: str
    precision: str
    device: str = "cpu"
    threads: int = 1
    batch: int = Field(default=1, ge=1)
    size: int = 320
    files: dict[str, str] = Field(default_factory=dict)
    size_mb: float = 0.0
    runtime: str = ""
    ran: str = ""
    import_ms: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    latency: Latency | None = None
    throughput: Throughput | None = None
    stages: dict[str, float] = Field(default_factory=dict)
    memory_mb: float | None = None
    baseline_mb: float | None = None
    gpu_mb: float | None = None
    gpu_ms: float | None = None
    gpu_samples: tuple[float, ...] = ()
    cpu_ms: float | None = None
    joules: float | None = None
    mask: Mask | None = None
    unjudged: str = ""
    failed: str = ""
    notes: tuple[str, ...] = ()

    @property
    def per_picture(self) -> float | None:
        """Median latency by the pictures of a call, ms."""
        return self.latency.median / self.batch if self.latency else None

    @property
    def right(self) -> bool:
        """Its masks were compared and are within the budget: only such a row may win."""
        return self.mask is not None and self.mask.passed and not self.failed


class Ratio(Fact):
    """A row's latency a picture by the baseline row's.

    Attributes:
        name: of the row.
        ratio: below 1 is faster than the baseline.
        low: lower end of its 95 percent interval.
        high: upper end.
        verdict: `faster`, `slower` or `no difference`.
    """

    name: str
    ratio: float
    low: float
    high: float
    verdict: str


class BenchReport(Fact):
    """A whole benchmark.

    Attributes:
        created: date and time, UTC.
        command: what was typed.
        machine: facts of the machine, by name.
        versions: of the packages that matter.
        reference: what the masks were compared with.
        pictures: names of the pictures.
        baseline: name of the row that ratios are taken against.
        rows: one each.
        ratios: of every measured row but the baseline.
        calibration_ms: median time of a fixed piece of work that was done in turn with the rows:
            it tells how fast this machine was at the time.
        calibration: its samples, block by block.
        seconds: the measurement took.
        stable: the intervals are as narrow as they should be.
        notes: what else should be known, as sentences.
    """

    schema_version: int = SCHEMA
    created: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    reference: str
    pictures: tuple[str, ...]
    baseline: str
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...] = ()
    calibration_ms: float = Field(gt=0)
    calibration: tuple[tuple[float, ...], ...] = ()
    seconds: float
    stable: bool
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Row:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def winner(self) -> Row | None:
        """The fastest a picture of the rows whose masks are right; None where none is."""
        able = [row for row in self.rows if row.right and row.per_picture is not None]
        return min(able, key=lambda row: row.per_picture or 0.0, default=None)


def read(path: Path) -> BenchReport:
    """Read a report that was written as JSON.

    Raises:
        InputError: it cannot be read, or is no such report, or of a newer schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no benchmark report: it is no text") from error
    try:
        found = BenchReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{path} is no benchmark report: {where}: {first['msg']}") from error
    if found.schema_version > SCHEMA:
        raise InputError(
            f"{path} has schema {found.schema_version}, this u2export reads up to {SCHEMA}: "
            "upgrade u2export"
        )
    return found
