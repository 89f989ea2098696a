"""Files for other users: who may read them, and who may export beside them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attacks.table import picture
from conftest import POSIX

from u2export.core.artifact import read_artifact
from u2export.errors import ExportError
from u2export.export.publish import workspace

NOBODY = 65534
COMMANDS = [
    ("openvino", "--model", "u2netp-demo", "--size", "64", "-o", "made/e"),
    ("run", "made/e/u2netp-demo-fp32-64.xml", "p.png", "-o", "made/o", "--log", "made/run.log"),
    ("inspect", "made/e/u2netp-demo-fp32-64.xml", "--json", "made/i.json"),
]
AS_ROOT = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can become a second user"
)


@POSIX
@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_everything_has_the_mode_that_the_mask_says(mask, file, folder, tmp_path: Path):
    picture(tmp_path / "p.png")
    env = {**os.environ, "U2EXPORT_CACHE": str(tmp_path / "made" / "cache")}
    for words in COMMANDS:
        command = [sys.executable, "-m", "u2export", *words]
        subprocess.run(command, cwd=tmp_path, env=env, umask=mask, check=True)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").rglob("*")}
    assert any(path.suffix == ".blob" for path in found)
    expected = {path: folder if path.is_dir() else file for path in found}
    assert {path: oct(mode) for path, mode in found.items() if mode != expected[path]} == {}


def _as_nobody(work: Callable[[], object]) -> None:
    """Do something as another user, in a process of its own that has imported all it needs."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            status = 0
        except ExportError as error:
            status = ExportError.exit_status
            print(error, file=sys.stderr)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.fixture
def shared_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of root in which the other user's group may write."""
    modes = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.parents)}
    for path, mode in modes.items():
        path.chmod(mode | 0o011)  # others may pass, and list nothing
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, -1, NOBODY)
    shared.chmod(0o775)
    yield shared
    for path, mode in modes.items():
        path.chmod(mode)


@AS_ROOT
def test_a_second_user_exports_beside_the_first(shared_folder: Path):
    target = shared_folder / "a.onnx"

    def export() -> None:
        with workspace(target) as folder:
            (folder / "draft").write_text("")

    export()
    assert list(shared_folder.glob(".*.lock"))  # of the first user
    _as_nobody(export)


@AS_ROOT
def test_a_second_user_waits_for_the_first(shared_folder: Path):
    target = shared_folder / "a.onnx"

    def refused() -> None:
        with pytest.raises(ExportError, match=r"another export .* is running"), workspace(target):
            pass

    with workspace(target):
        _as_nobody(refused)


@AS_ROOT
def test_a_second_user_reads_an_artifact(shared_folder: Path, small: Path):
    made = next(small.glob("*.onnx"))
    for name in (made.name, f"{made.name}.json"):
        shutil.copy2(small / name, shared_folder)  # with the mode it was published with
    _as_nobody(lambda: read_artifact(shared_folder / made.name))
