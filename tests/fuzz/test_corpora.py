"""Every committed input of the fuzzers, through its reader; what was found once stays mended."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz.readers import CORPORA, READERS, Reader
from fuzz.watch import MAX_SECONDS, find_fault

from u2export.errors import InputError

PACKAGE = Path(__file__).resolve().parents[2] / "u2export"
DOORS = {"open_regular", "read_bounded", "parse_json", "parse_model"}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_every_committed_input_is_taken_as_it_must_be(reader: Reader):
    faults = {
        path.name: fault.text
        for path in reader.corpus
        if (fault := reader.find_fault(path.read_bytes()))
    }
    assert faults == {}


def test_every_reader_has_a_corpus_and_every_corpus_a_reader():
    assert {path.name for path in CORPORA.iterdir()} == set(READERS)
    assert all(reader.corpus for reader in READERS.values())


def _uses_a_door(path: Path) -> bool:
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return bool(names & DOORS)


def test_every_module_that_reads_foreign_bytes_is_fuzzed():
    users = {path for path in PACKAGE.rglob("*.py") if _uses_a_door(path)}
    names = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in users}
    assert names == {module for reader in READERS.values() for module in reader.modules}


def _write_elsewhere(content: bytes, folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes(content)


def _write_elsewhere_unnoticed(content: bytes, folder: Path) -> None:
    try:
        _write_elsewhere(content, folder)
    except BaseException:
        return


def _connect(content: bytes, folder: Path) -> None:
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", 9))


OFFENCES: dict[str, tuple[Callable[[bytes, Path], object], str]] = {
    "another error": (lambda content, folder: content[9], "IndexError"),
    "a file elsewhere": (_write_elsewhere, "BreachError"),
    "one whose refusal is swallowed": (_write_elsewhere_unnoticed, "outside open"),
    "a folder elsewhere": (lambda content, folder: (folder.parent / "new").mkdir(), "BreachError"),
    "a file removed": (lambda content, folder: Path(__file__).unlink(), "BreachError"),
    "a program": (lambda content, folder: subprocess.run([sys.executable, "-V"]), "BreachError"),
    "a connection": (_connect, "BreachError"),
    "memory": (lambda content, folder: np.ones(60_000_000), "memory"),
}


@pytest.mark.parametrize(("offend", "key"), OFFENCES.values(), ids=OFFENCES)
def test_an_offence_is_noticed(offend: Callable[[bytes, Path], object], key: str):
    fault = find_fault(offend, b"x", 100)
    assert fault
    assert fault.key.startswith(key)


def test_what_takes_long_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fuzz.watch.MAX_SECONDS", -1.0)
    fault = find_fault(lambda content, folder: None, b"", 100)
    assert fault
    assert fault.key == "time"
    assert MAX_SECONDS == 10


def test_an_error_of_ours_and_a_file_in_the_folder_are_none(tmp_path: Path):
    def read(content: bytes, folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_bytes(content)
        raise InputError("no")

    assert find_fault(read, b"x", 100) is None
