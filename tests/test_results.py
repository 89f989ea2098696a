"""What README and documentation say was measured is what the files of measurements hold."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure_house
import pytest
import readme_table

ROOT = measure_house.ROOT
RESULTS = ROOT / "benchmarks" / "results"
INDEX = RESULTS / "README.md"
PAGES = [measure_house.README, *measure_house.doc_pages()]
MEASURED = ROOT / "docs" / "reference" / "results.md"
LINK = re.compile(r"\]\((?:\.\./)*benchmarks/results/([^)#]+)\)")
LINKED = re.compile(r"\[([^\]]+)\]\((?:\.\./)*benchmarks/results/([^)#]+)\)")
ROW = re.compile(
    r"^\| `(?P<file>[^`]+)` \| (?P<shows>.+) \| `(?P<script>[^`]+)` \| (?P<pages>.+) \|$"
)
FIGURE = re.compile(r"(?<![\w.-])(\d+\.\d+)( %)?")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def index() -> dict[str, dict[str, str]]:
    """The lines of the index by file."""
    found = map(ROW.match, INDEX.read_text("utf-8").splitlines())
    return {row["file"]: row.groupdict() for row in found if row}


def linking_pages(name: str) -> set[str]:
    """The pages that link to a file of measurements."""
    return {
        page.relative_to(ROOT).as_posix()
        for page in PAGES
        if name in LINK.findall(page.read_text("utf-8"))
    }


def test_every_file_has_a_line_and_every_line_a_file():
    files = {path.name for path in RESULTS.iterdir() if path != INDEX}
    assert set(index()) == files


def test_every_line_names_a_script_that_exists():
    missing = [
        row["script"] for row in index().values() if not (RESULTS.parent / row["script"]).is_file()
    ]
    assert missing == []


def test_every_line_names_the_pages_that_rest_on_its_file():
    for name, row in index().items():
        assert set(re.findall(r"`([^`]+)`", row["pages"])) == linking_pages(name), name


def test_every_claim_has_a_file():
    claimed = [name for page in PAGES for name in LINK.findall(page.read_text("utf-8"))]
    assert len(claimed) > len(PAGES)
    assert [name for name in claimed if not (RESULTS / name).is_file()] == []


def numbers(value: Any) -> Iterator[float]:
    """Every number of a document, those within texts among them."""
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, str):
        yield from map(float, NUMBER.findall(value))
    elif isinstance(value, (int, float)):
        yield float(value)


def claims() -> list[Any]:
    """The figures of the page of measurements, and those in links, each with its file."""
    stated: set[tuple[str, bool, str]] = set()
    for line in MEASURED.read_text("utf-8").splitlines():
        cells = line.strip("| ").split(" | ")
        files = LINK.findall(cells[-1])
        if line.startswith("| ") and len(files) == 1:
            text = " | ".join(cells[1:-1])
            stated |= {(figure, bool(sign), files[0]) for figure, sign in FIGURE.findall(text)}
    for page in PAGES:
        for text, file in LINKED.findall(page.read_text("utf-8")):
            stated |= {(figure, bool(sign), file) for figure, sign in FIGURE.findall(text)}
    return [pytest.param(*each, id=f"{each[0]}-{each[2]}") for each in sorted(stated)]


def holds(document: Any, figure: str, *, percent: bool) -> bool:
    """Whether a document has a number that is this one when rounded as it is.

    A short figure may be found by chance, in another number of the document.
    """
    digits = len(figure.split(".")[1])
    return any(
        abs(round(value * (100 if percent else 1), digits) - float(figure)) < 10**-digits / 2
        for value in numbers(document)
    )


@pytest.mark.parametrize(("figure", "percent", "name"), claims())
def test_a_figure_is_in_the_file_it_comes_from(figure: str, percent: bool, name: str):
    assert holds(json.loads((RESULTS / name).read_text("utf-8")), figure, percent=percent)


def test_a_figure_that_no_file_holds_is_found():
    document = {"a": [0.00192625], "b": "0.523 to 0.571", "c": {"d": 0.0079}}
    assert holds(document, "0.0019", percent=False)
    assert holds(document, "0.57", percent=False)
    assert holds(document, "0.79", percent=True)
    assert not holds(document, "0.0018", percent=False)
    assert not holds(document, "0.79", percent=False)


@pytest.mark.parametrize("page", readme_table.PAGES, ids=lambda page: page.stem)
def test_the_table_is_that_of_its_files(page: Path):
    text = page.read_text("utf-8")
    files = readme_table.source_files(text)
    assert readme_table.fill_table(text, page, files) == text
    for path in files:
        rows = json.loads(path.read_text("utf-8"))["rows"]
        median = rows[-1]["latency"]["median"] / rows[-1]["batch"]
        assert f"| {median:.0f} | " in text


def test_a_table_of_other_figures_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = readme_table.README.read_text("utf-8")
    [source, *_] = readme_table.source_files(text)
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    changed = tmp_path / source.name
    shutil.copy(source, changed)
    report = json.loads(changed.read_text("utf-8"))
    before = report["rows"][0]["latency"]["median"]
    report["rows"][0]["latency"]["median"] = before + 7
    changed.write_text(json.dumps(report))
    name = report["rows"][0]["name"]
    filled = readme_table.fill_table(text, tmp_path / "README.md", [changed])
    assert f"<!-- table of {source.name} -->" in filled
    assert f"| `{name}` | {before + 7:.0f} | 1 |" in filled
    assert f"| `{name}` | {before:.0f} | 1 |" not in filled
