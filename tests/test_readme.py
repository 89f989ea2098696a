"""What the README says is what was measured."""

from __future__ import annotations

import readme_table


def test_the_table_is_made_of_a_committed_results_file():
    text = readme_table.README.read_text(encoding="utf-8")
    [name] = readme_table.MARKED.findall(text)
    path = readme_table.ROOT / name
    assert path.is_file()
    assert readme_table.filled(text, path) == text
    changed = text.replace("| `u2netp-fp32.onnx` |", "| `u2netp-fp32.onnx` | 1 ", 1)
    assert readme_table.filled(changed, path) == text
