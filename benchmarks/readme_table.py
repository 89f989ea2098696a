"""Write the README's table of latencies from a results file of `matrix.py`.

    python benchmarks/readme_table.py benchmarks/results/FILE.json

The table stands between two marks, the first of which names the file.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from u2export.bench.report import BenchReport, Row, read

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MARKED = re.compile(r"<!-- table of (\S+) -->\n.*?<!-- end of the table -->", re.DOTALL)
HEADS = ("file", "ms a picture (95 %)", "against the first", "memory, MB", "file, MB", "mask IoU")


def table(report: BenchReport) -> str:
    """A row a file, in the report's order."""
    lines = [f"| {' | '.join(HEADS)} |", "|" + "-|" * len(HEADS)]
    for row in report.rows:
        lines.append(f"| {' | '.join(_cells(row, report))} |")
    return "\n".join(lines)


def _cells(row: Row, report: BenchReport) -> list[str]:
    found = next((ratio for ratio in report.ratios if ratio.name == row.name), None)
    latency, first = row.latency, "1" if row.name == report.baseline else ""
    iou = f"{row.mask.iou:.4f}" if row.mask and row.mask.iou is not None else "not compared"
    if row.mask and not row.mask.passed:
        iou += " (wrong)"
    return [
        f"`{row.name}`",
        f"{latency.median:.0f} ({latency.low:.0f} to {latency.high:.0f})"
        if latency
        else row.failed,
        f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})" if found else first,
        f"{row.memory_mb:.0f}" if row.memory_mb is not None else "",
        f"{row.size_mb:.1f}",
        iou,
    ]


def filled(readme: str, path: Path) -> str:
    """The README with the table of a results file between its marks."""
    name = path.resolve().relative_to(ROOT).as_posix()
    text = f"<!-- table of {name} -->\n{table(read(path))}\n<!-- end of the table -->"
    readme, count = MARKED.subn(lambda found: text, readme)
    if count != 1:
        raise ValueError(f"the README has {count} places for the table, not one")
    return readme


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8"), Path(sys.argv[1])), "utf-8")
