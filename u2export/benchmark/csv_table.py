"""A benchmark as comma-separated values."""

from __future__ import annotations

import csv
import io

from u2export.benchmark.report import STAGES, BenchmarkReport, Row
from u2export.benchmark.text import find_ratio, one_line, row_reason, row_state

_EMPTY_ROW = Row(name="", file="", backend="", precision="")
_FORMULA_SIGNS = ("=", "+", "-", "@")  # a spreadsheet computes a text that starts with one of them
Cell = str | float | None


def csv_text(report: BenchmarkReport) -> str:
    """Write a header, and one line per row. The names of columns contain the units.

    Latencies are those of a call with `batch` pictures, except `picture_median_ms`. Unknown values
    are empty. A text that a spreadsheet would compute starts with an apostrophe.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(_row_cells(_EMPTY_ROW, report)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row_cells(row, report) for row in report.rows)
    return out.getvalue()


def _row_cells(row: Row, report: BenchmarkReport) -> dict[str, Cell]:
    """Return the cells of a row by column. All rows have the same columns."""
    return {
        **_artifact_cells(row),
        **_time_cells(row),
        **_ratio_cells(row, report),
        **_resource_cells(row),
        **{f"stage_{stage}_ms": row.stages.get(stage) for stage in STAGES},
        **_mask_cells(row),
        "created": _plain_text(report.created),
        "calibration_ms": report.calibration_ms,
    }


def _artifact_cells(row: Row) -> dict[str, Cell]:
    hashes = "; ".join(f"{name} {digest}" for name, digest in row.files.items())
    return {
        "name": _plain_text(row.name),
        "file": _plain_text(row.file),
        "sha256": _plain_text(hashes),
        "backend": _plain_text(row.backend),
        "precision": _plain_text(row.precision),
        "device": _plain_text(row.device),
        "threads": row.threads,
        "batch": row.batch,
        "input_px": row.size,
        "runtime": _plain_text(row.runtime),
        "ran": _plain_text(row.ran),
    }


def _time_cells(row: Row) -> dict[str, Cell]:
    latency = row.latency
    fields = ("median", "low", "high", "p90", "p95", "p99")
    return {
        "picture_median_ms": row.picture_ms,
        **{f"latency_{field}_ms": getattr(latency, field, None) for field in fields},
        "latency_samples": latency.sample_count if latency else None,
        "import_ms": row.import_ms,
        "load_ms": row.load_ms,
        "first_call_ms": row.first_ms,
    }


def _ratio_cells(row: Row, report: BenchmarkReport) -> dict[str, Cell]:
    ratio = find_ratio(row, report)
    return {
        "ratio_to_baseline": ratio.ratio if ratio else None,
        "ratio_low": ratio.low if ratio else None,
        "ratio_high": ratio.high if ratio else None,
        "ratio_verdict": _plain_text(ratio.verdict) if ratio else None,
    }


def _resource_cells(row: Row) -> dict[str, Cell]:
    throughput = row.throughput
    return {
        "pictures_per_second": throughput.pictures if throughput else None,
        "pictures_per_second_with": _plain_text(throughput.how) if throughput else None,
        "gpu_ms_per_call_without_copies": row.gpu_ms,
        "cpu_ms_per_picture": row.cpu_ms,
        "joules_per_picture": row.joules,
        "memory_mb": row.memory_mb,
        "baseline_memory_mb": row.baseline_mb,
        "gpu_memory_mb": row.gpu_mb,
        "files_mb": row.size_mb,
    }


def _mask_cells(row: Row) -> dict[str, Cell]:
    mask = row.mask
    return {
        "verdict": row_state(row),
        "why": _plain_text(row_reason(row)),
        "mask_pictures": mask.pictures if mask else None,
        "mask_mae": mask.mae if mask else None,
        "mask_iou": mask.iou if mask else None,
        "mask_worst_iou": mask.worst_iou if mask else None,
        "mask_worst_picture": _plain_text(mask.worst_picture) if mask else None,
        "notes": _plain_text(" ".join(row.notes)),
    }


def _plain_text(text: str) -> str:
    """Return the text in one line, such that no spreadsheet computes it."""
    plain = one_line(text)
    return f"'{plain}" if plain.startswith(_FORMULA_SIGNS) else plain
