"""A benchmark as a sheet of comma-separated values."""

from __future__ import annotations

import csv
import io

from u2export.bench.report import STAGES, BenchReport, Row
from u2export.bench.text import against, line, reason, state

_BLANK = Row(name="", file="", backend="", precision="")
_FORMULA = ("=", "+", "-", "@")  # how a text begins that spreadsheets would compute
Cell = str | float | None


def csv_text(report: BenchReport) -> str:
    """Write a header and a line a row, with units in the columns' names.

    Latencies are of a call with `batch` pictures, but for `picture_median_ms`. What is not known
    is left empty. A text that a spreadsheet would compute has an apostrophe before it.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(_flat(_BLANK, report)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(row, report) for row in report.rows)
    return out.getvalue()


def _flat(row: Row, report: BenchReport) -> dict[str, Cell]:
    """A row's cells by their columns: every row has the same ones."""
    return {
        **_what(row),
        **_times(row),
        **_ratio(row, report),
        **_resources(row),
        **{f"stage_{stage}_ms": row.stages.get(stage) for stage in STAGES},
        **_mask(row),
        "created": _plain(report.created),
        "calibration_ms": report.calibration_ms,
    }


def _what(row: Row) -> dict[str, Cell]:
    return {
        "name": _plain(row.name),
        "file": _plain(row.file),
        "sha256": _plain("; ".join(f"{name} {digest}" for name, digest in row.files.items())),
        "backend": _plain(row.backend),
        "precision": _plain(row.precision),
        "device": _plain(row.device),
        "threads": row.threads,
        "batch": row.batch,
        "input_px": row.size,
        "runtime": _plain(row.runtime),
        "ran": _plain(row.ran),
    }


def _times(row: Row) -> dict[str, Cell]:
    found = row.latency
    fields = ("median", "low", "high", "p90", "p95", "p99")
    return {
        "picture_median_ms": row.per_picture,
        **{f"latency_{field}_ms": getattr(found, field, None) for field in fields},
        "latency_samples": found.count if found else None,
        "import_ms": row.import_ms,
        "load_ms": row.load_ms,
        "first_call_ms": row.first_ms,
    }


def _ratio(row: Row, report: BenchReport) -> dict[str, Cell]:
    found = against(row, report)
    names = {"ratio_to_baseline": "ratio", "ratio_low": "low", "ratio_high": "high"}
    cells: dict[str, Cell] = {name: getattr(found, field, None) for name, field in names.items()}
    return cells | {"ratio_verdict": _plain(found.verdict) if found else None}


def _resources(row: Row) -> dict[str, Cell]:
    best = row.throughput
    return {
        "pictures_per_second": best.pictures if best else None,
        "pictures_per_second_with": _plain(best.how) if best else None,
        "gpu_ms_per_call_without_copies": row.gpu_ms,
        "cpu_ms_per_picture": row.cpu_ms,
        "joules_per_picture": row.joules,
        "memory_mb": row.memory_mb,
        "baseline_memory_mb": row.baseline_mb,
        "gpu_memory_mb": row.gpu_mb,
        "files_mb": row.size_mb,
    }


def _mask(row: Row) -> dict[str, Cell]:
    found = row.mask
    return {
        "verdict": state(row),
        "why": _plain(reason(row)),
        "mask_pictures": found.pictures if found else None,
        "mask_mae": found.mae if found else None,
        "mask_iou": found.iou if found else None,
        "mask_worst_iou": found.worst_iou if found else None,
        "mask_worst_picture": _plain(found.worst_picture) if found else None,
        "notes": _plain(" ".join(row.notes)),
    }


def _plain(text: str) -> str:
    """A text in one line that no spreadsheet takes for a formula."""
    kept = line(text)
    return f"'{kept}" if kept.startswith(_FORMULA) else kept
