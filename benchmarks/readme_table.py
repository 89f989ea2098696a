"""Write the table of results into the README and the documentation, from files of measurements.

    python benchmarks/readme_table.py [FILE.json ...]

The table stands between two marks. The first names the files, reports of `u2export bench`. Each
row shows the latency, the ratio to the baseline of the same file, and the mask. A row whose name
an earlier file has is left out. With files named here, these take the place of the old ones.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from u2export.benchmark.report import BenchmarkReport, Row, read_report

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "reference" / "results.md")
MARKED = re.compile(r"<!-- table of ([^>]+) -->\n.*?<!-- end of the table -->", re.DOTALL)
HEADS = ("file", "ms a picture", "× ONNX fp32 (95 %)", "MB", "mask IoU, mean / worst", "source")
OTHERS = {
    "naive-int8.onnx": "onnxruntime's own int8",
    "nncf-int8.xml": "NNCF's int8",
}


def source_files(text: str) -> list[Path]:
    """List the files that a page's table is made of.

    Raises:
        ValueError: the page has no place for a table, or several.
    """
    marks = MARKED.findall(text)
    if len(marks) != 1:
        raise ValueError(f"the page has {len(marks)} places for the table, not one")
    return [ROOT / name for name in marks[0].split()]


def fill_table(text: str, page: Path, files: Sequence[Path]) -> str:
    """Give a page's text with the table of these files between its marks."""
    names = " ".join(path.relative_to(ROOT).as_posix() for path in files)
    lines = [f"| {' | '.join(HEADS)} |", "|" + " - |" * len(HEADS), *_rows(page, files)]
    table = "\n".join([f"<!-- table of {names} -->", *lines, "<!-- end of the table -->"])
    return MARKED.sub(lambda found: table, text)


def _rows(page: Path, files: Sequence[Path]) -> Iterator[str]:
    shown: set[str] = set()
    for number, path in enumerate(files, start=1):
        report = read_report(path)
        address = Path(os.path.relpath(path, page.parent)).as_posix()
        for row in report.rows:
            if row.name not in shown:
                shown.add(row.name)
                cells = [*_cells(row, report), f"[{number}]({address})"]
                yield f"| {' | '.join(cells)} |"


def _cells(row: Row, report: BenchmarkReport) -> list[str]:
    ratio = next((ratio for ratio in report.ratios if ratio.name == row.name), None)
    first = "1" if row.name == report.baseline else ""
    return [
        OTHERS.get(row.name, f"`{row.name}`"),
        f"{row.picture_ms:.0f}" if row.picture_ms else row.failed,
        f"{ratio.ratio:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else first,
        f"{row.size_mb:.1f}",
        _mask(row),
    ]


def _mask(row: Row) -> str:
    if row.mask is None or row.mask.iou is None or row.mask.worst_iou is None:
        return "not compared"
    text = f"{row.mask.iou:.3f} / {row.mask.worst_iou:.3f}"
    return text if row.mask.passed else f"**{text}, wrong**"


def main() -> None:
    """Write the table into every page that has one."""
    given = [Path(name).resolve() for name in sys.argv[1:]]
    for page in PAGES:
        text = page.read_text("utf-8")
        page.write_text(fill_table(text, page, given or source_files(text)), "utf-8")


if __name__ == "__main__":
    main()
