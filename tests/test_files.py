"""The one way to write files, where caches lie, and versions of packages."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from u2export.errors import ExportError, InputError, OutputError
from u2export.export import publish
from u2export.system.cache import cache_folder, compiled_models_folder, weights_folder
from u2export.system.files import (
    atomic_file,
    partial_path,
    remove_partials,
    write_bytes,
    write_error,
    write_text,
)
from u2export.system.versions import package_versions

PACKAGE = Path(__file__).resolve().parents[1] / "u2export"


def test_an_error_leaves_what_had_the_name_before(tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def fail_halfway() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_has_the_name_before_the_end(tmp_path: Path):
    path = tmp_path / "new" / "a.bin"
    with atomic_file(path, durable=True) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_name_as_long_as_the_system_allows_is_written(tmp_path: Path):
    path = tmp_path / ("x" * 250 + ".txt")
    write_bytes(path, b"content")
    assert path.read_bytes() == b"content"


def test_two_writers_of_one_file_do_not_share_a_partial(tmp_path: Path):
    path = tmp_path / "a.bin"
    with atomic_file(path) as one, atomic_file(path) as two:
        one.write(b"one")
        two.write(b"two")
    assert path.read_bytes() == b"one"  # the outer one ends last


def test_files_may_be_read_by_others(tmp_path: Path):
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_text_goes_where_a_link_points(tmp_path: Path):
    (tmp_path / "real.txt").write_text("before")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "ünï")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_bytes() == "ünï".encode()


def test_a_device_is_written_as_it_is(tmp_path: Path):
    code = "from pathlib import Path; from u2export.system.files import write_text\n"
    code += "write_text(Path('/dev/stdout'), 'hello')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"hello"


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"a\.txt cannot be written: (Not a directory|File exists)"
    ):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_only_dead_processes_partials_are_removed(tmp_path: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = partial_path(tmp_path / "a.png")
    left = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    elsewhere = own.with_name(re.sub(r"[0-9a-f]{8}", "0" * 8, left.name, count=1))
    foreign = tmp_path / ".a.part"
    for path in (own, left, elsewhere, foreign):
        path.touch()
    remove_partials({tmp_path})
    assert {path.name for path in tmp_path.iterdir()} == {own.name, elsewhere.name, foreign.name}


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (28, OutputError, "No space left on device; nothing was left behind"),
        (13, InputError, "cannot be written: Permission denied"),
    ],
)
def test_a_full_disk_is_told_from_a_bad_path(number, kind, sentence):
    error = write_error(Path("out/a.onnx"), OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert sentence in str(error)


def test_nothing_else_in_the_package_replaces_files():
    pattern = re.compile(
        r"os\.(replace|rename|fsync)\(|\.(replace|rename)\((path|target|part)\b|\.part\b"
    )
    found = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    ]
    # ray.py moves objects within an object store, which is no file system
    assert set(found) == {"system/files.py", "ray.py"}


def test_all_caches_lie_in_the_folder_that_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("U2EXPORT_CACHE", str(tmp_path))
    monkeypatch.delenv("U2EXPORT_COMPILED", raising=False)
    assert cache_folder() == tmp_path
    assert weights_folder() == tmp_path / "weights"
    assert compiled_models_folder() == tmp_path / "compiled"


def test_weights_that_an_older_release_kept_are_still_found(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("U2EXPORT_CACHE", str(tmp_path))
    (tmp_path / "pins.json").write_text("{}")
    assert weights_folder() == tmp_path


def test_versions_are_told_by_the_distributions_name():
    import numpy
    import PIL

    found = package_versions(["absent_package", "cuda.bindings or numpy"])
    assert (found["numpy"], found["pillow"]) == (numpy.__version__, PIL.__version__)
    assert "absent_package" not in found


def test_a_folder_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    """Windows keeps a folder while a program has one of its files open."""
    left = tmp_path / ".a.onnx.partial"
    left.mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)
    with pytest.raises(ExportError, match=r"\.a\.onnx\.partial is in use: close the program"):
        publish.workspace(tmp_path / "a.onnx").__enter__()
