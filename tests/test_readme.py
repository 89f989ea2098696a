"""What the README says was measured is what lies beside the scripts that measured it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import readme_table


def test_the_table_of_latencies_is_that_of_a_results_file():
    text = readme_table.README.read_text(encoding="utf-8")
    named = readme_table.MARKED.findall(text)
    assert len(named) == 1
    path = readme_table.ROOT / named[0]
    assert readme_table.filled(text, path) == text
    for row in json.loads(path.read_text())["rows"]:
        assert f"| `{row['name']}` | {row['latency']['median']:.0f} (" in text


def test_a_table_of_other_figures_is_another(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    text = readme_table.README.read_text(encoding="utf-8")
    source = Path(__file__).parents[1] / readme_table.MARKED.findall(text)[0]
    there = tmp_path / source.name
    shutil.copy(source, there)
    report = json.loads(there.read_text())
    report["rows"][0]["latency"]["median"] += 7
    there.write_text(json.dumps(report))
    before = f"{report['rows'][0]['latency']['median'] - 7:.0f} ("
    after = f"{report['rows'][0]['latency']['median']:.0f} ("
    filled = readme_table.filled(text, there)
    assert f"<!-- table of {source.name} -->" in filled
    assert f"`{report['rows'][0]['name']}` | {after}" in filled
    assert f"`{report['rows'][0]['name']}` | {before}" not in filled
