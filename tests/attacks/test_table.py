"""Every row of the table, as a user would type it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from attacks.table import ATTACKS, Attack
from conftest import POSIX

from u2export.core.digest import text_with_digest

pytestmark = POSIX


@pytest.fixture
def folder(quick: Path, tmp_path: Path) -> Path:
    """A folder with an artifact and its manifest."""
    shutil.copy(quick, tmp_path / "a.onnx")
    document = json.loads(Path(f"{quick}.json").read_text("utf-8"))
    document["files"] = {"a.onnx": document["files"][quick.name]}
    (tmp_path / "a.onnx.json").write_text(text_with_digest(document), "utf-8")
    return tmp_path


def _names(folder: Path) -> set[Path]:
    """What lies in a folder, but for its results."""
    return {path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "o"}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_ends_with_its_status_and_a_sentence(attack: Attack, command, folder: Path):
    attack.make(folder)
    before, results = _names(folder), folder / "o"
    done = command(*attack.words)
    told = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert done.returncode == attack.status, done.stderr
    assert attack.sentence in done.stderr if attack.sentence else not told
    assert all(line.startswith("u2export: ") and line.isprintable() for line in told), done.stderr
    files = {path.name for path in results.iterdir() if path.is_file()} if results.exists() else ()
    assert set(files) == set(attack.results)
    assert {path.name for path in _names(folder) - before} <= {"l.jsonl"}
