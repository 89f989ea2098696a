"""The report of a benchmark: models with a stable JSON schema, and a reader.

Times are in milliseconds. Memory and file sizes are in MB of 10^6 bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from u2export.compare.budgets import BUDGETS
from u2export.core.enums import Stage
from u2export.errors import InputError
from u2export.reports.model import FrozenModel
from u2export.system.documents import first_line, parse_model, read_bounded

SCHEMA = 2  # since 2 the fixed work is Python's own sort
# Beyond these no machine measures anything, and ratios would leave the range of numbers.
_LEAST, _MOST = 1e-9, 1e15
_Positive = Annotated[float, Field(ge=_LEAST, le=_MOST)]
_Amount = Annotated[float, Field(ge=0, le=_MOST)]
_Blocks = tuple[tuple[_Positive, ...], ...]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
# No built-in budget passes such masks.
LEAST_PASSED_IOU = min(budget.mask_iou for budget in BUDGETS.values())
STAGES = tuple(stage for stage in Stage if stage is not Stage.READ)  # the bytes are in memory


class Latency(FrozenModel):
    """Time of a call after warm-up, ms.

    Attributes:
        median: median of all samples.
        low: lower end of the median's 95 percent interval, computed from the blocks.
        high: upper end of that interval.
        p90: 90th percentile; None if there are too few samples.
        p95: 95th percentile, likewise.
        p99: 99th percentile, likewise.
        blocks: raw samples, one block per round, in the order of measurement.
        disturbed: raw samples of rounds in which threads waited for a core. No other figure uses
            them.
    """

    median: _Positive
    low: _Amount
    high: _Positive
    p90: _Positive | None = None
    p95: _Positive | None = None
    p99: _Positive | None = None
    blocks: _Blocks = ()
    disturbed: _Blocks = ()

    @property
    def sample_count(self) -> int:
        """Number of samples."""
        return sum(len(block) for block in self.blocks)


class Throughput(FrozenModel):
    """The highest throughput in a small sweep of batches and streams.

    Attributes:
        pictures: pictures per second of the best setting.
        how: the best setting, such as `2 streams` or `batch 4`.
        tried: pictures per second of every setting.
    """

    pictures: _Positive
    how: str
    tried: dict[str, float] = Field(default_factory=dict)


class MaskAccuracy(FrozenModel):
    """How far the masks are from the reference's masks of the same pictures.

    Attributes:
        passed: the masks are within the budget of the artifact's precision.
        reasons: phrases that say what exceeds the budget.
        pictures: number of compared pictures.
        mae: mean absolute difference of the masks, averaged over pictures with a subject.
        iou: intersection over union at 0.5, averaged likewise.
        worst_iou: IoU of the worst picture with a subject.
        worst_picture: name of that picture.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    pictures: int = 0
    mae: _Share | None = None
    iou: _Share | None = None
    worst_iou: _Share | None = None
    worst_picture: str = ""

    @property
    def is_correct(self) -> bool:
        """Whether they passed, and the figures do not contradict that.

        Earlier releases let a file of 8 bits say how strictly it is judged.
        """
        return self.passed and (self.iou is None or self.iou >= LEAST_PASSED_IOU)


class Row(FrozenModel):
    """One artifact at one batch size.

    Attributes:
        name: unique in a report: the file's name, followed by ` b4` at a batch of 4.
        file: name of the model file.
        backend: backend that ran the file.
        precision: precision of the stored values.
        device: device that ran the file.
        threads: number of threads for computation.
        batch: pictures per call.
        size: side of the network's input, pixels; 0 where the file cannot be read.
        files: sha256 of each file, by file name.
        size_mb: total size of these files.
        runtime: name and version of the runtime.
        ran: what the runtime really ran, as text.
        import_ms: time to import the runtime.
        load_ms: time to load or compile the model. OpenVINO's cache of compiled models is empty.
        first_ms: time of the first call.
        latency: time of a call with `batch` pictures; None if nothing was measured.
        throughput: None if it was not measured.
        stages: median time of each stage, by the names in `STAGES`.
        memory_mb: largest resident memory of the worker, less `baseline_mb`.
        baseline_mb: memory of Python with u2export, before the artifact is loaded.
        gpu_mb: GPU memory; None on a CPU, and where the driver does not report it.
        gpu_ms: median time of a call by GPU events, without copies; None on a CPU.
        gpu_samples: raw samples behind `gpu_ms`.
        cpu_ms: processor time per picture, summed over all threads.
        joules: energy per picture of the complete machine; None if it cannot be read.
        mask: None if the masks were not compared.
        unjudged: phrase that says why the masks were not compared.
        failed: phrase that says why nothing was measured; empty otherwise.
        notes: further remarks, as sentences.
    """

    name: str
    file: str
    backend: str
    precision: str
    device: str = "cpu"
    threads: _Count = 1
    batch: _Count = 1
    size: Annotated[int, Field(ge=0)] = 320
    files: dict[str, str] = Field(default_factory=dict)
    size_mb: _Amount = 0.0
    runtime: str = ""
    ran: str = ""
    import_ms: _Amount | None = None
    load_ms: _Amount | None = None
    first_ms: _Amount | None = None
    latency: Latency | None = None
    throughput: Throughput | None = None
    stages: dict[str, float] = Field(default_factory=dict)
    memory_mb: _Amount | None = None
    baseline_mb: _Amount | None = None
    gpu_mb: _Amount | None = None
    gpu_ms: _Amount | None = None
    gpu_samples: tuple[float, ...] = ()
    cpu_ms: _Amount | None = None
    joules: _Amount | None = None
    mask: MaskAccuracy | None = None
    unjudged: str = ""
    failed: str = ""
    notes: tuple[str, ...] = ()

    @property
    def picture_ms(self) -> float | None:
        """Median latency per picture, ms."""
        return self.latency.median / self.batch if self.latency else None

    @property
    def is_correct(self) -> bool:
        """Whether the masks were compared and are within the budget. Only such a row can win."""
        return self.mask is not None and self.mask.is_correct and not self.failed


class Ratio(FrozenModel):
    """Latency per picture of a row, divided by that of the baseline row.

    Attributes:
        name: name of the row.
        ratio: below 1 is faster than the baseline.
        low: lower end of the 95 percent interval.
        high: upper end of that interval.
        verdict: `faster`, `slower` or `no difference`.
    """

    name: str
    ratio: _Positive
    low: _Amount
    high: _Positive
    verdict: str


class BenchmarkReport(FrozenModel):
    """The report of a complete benchmark.

    Attributes:
        schema_version: version of this schema.
        created: date and time, UTC.
        command: the command line.
        machine: facts about the machine, by name.
        versions: versions of the related packages.
        reference: name of the artifact that the masks were compared with.
        pictures: names of the pictures.
        baseline: name of the row that ratios refer to.
        rows: one row per artifact and batch size.
        ratios: one ratio per measured row, except the baseline.
        calibration_ms: median time of a fixed piece of work. It runs in every round and shows how
            fast the machine was.
        calibration: its raw samples, one block per round.
        seconds: duration of the measurement.
        stable: the intervals are as narrow as they should be.
        notes: further remarks, as sentences.
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
    calibration_ms: _Positive
    calibration: _Blocks = ()
    seconds: _Amount
    stable: bool
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Row:
        """Return the row with this name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def winner(self) -> Row | None:
        """The correct row with the lowest latency per picture; None if no row is correct."""
        candidates = [row for row in self.rows if row.is_correct and row.picture_ms is not None]
        return min(candidates, key=lambda row: row.picture_ms or 0.0, default=None)


def read_report(path: Path) -> BenchmarkReport:
    """Read a benchmark report from a JSON file.

    Raises:
        InputError: the file cannot be read, is no such report, or has a newer schema.
    """
    try:
        report = parse_model(read_bounded(path), BenchmarkReport)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no benchmark report: it is no text") from error
    except ValueError as error:
        raise InputError(f"{path} is no benchmark report: {first_line(error)}") from error
    if report.schema_version > SCHEMA:
        raise InputError(
            f"{path} has schema {report.schema_version}, this u2export reads up to {SCHEMA}: "
            "upgrade u2export"
        )
    return report
