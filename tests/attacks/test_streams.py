"""Standard streams that are closed, full, or of a narrow encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attacks.table import picture
from conftest import POSIX

pytestmark = POSIX
U2EXPORT = f"'{sys.executable}' -m u2export"


def _shell(line: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line.replace("u2export", U2EXPORT)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


@pytest.fixture
def folder(quick: Path, tmp_path: Path) -> Path:
    picture(tmp_path / "p.png")
    for suffix in ("", ".json"):
        (tmp_path / f"{quick.name}{suffix}").symlink_to(f"{quick}{suffix}")
    (tmp_path / "a.onnx").symlink_to(quick)
    return tmp_path


FULL = "u2export: error: standard output cannot be written: No space left on device\n"
CLOSED = "u2export: error: standard output cannot be written: it is closed\n"


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("u2export --help > /dev/full", 5, FULL),
        ("u2export --version > /dev/full", 5, FULL),
        ("u2export backends > /dev/full", 5, FULL),
        ("u2export backends --json > /dev/full", 5, FULL),
        ("u2export doctor --json - > /dev/full", 5, FULL),
        ("u2export run a.onnx p.png --out o > /dev/full", 5, FULL),
        ("u2export run a.onnx - --out - < p.png > /dev/full", 5, FULL),
        ("u2export backends >&-", 5, CLOSED),
        ("u2export run a.onnx - --out - < p.png >&-", 5, CLOSED),
        ("u2export run absent.onnx p.png 2> /dev/full", 2, ""),
        ("u2export run absent.onnx p.png 2>&-", 2, ""),
        (
            "u2export run a.onnx p.png --out o --log /dev/full",
            5,
            "u2export: error: /dev/full could not be written: No space left on device; "
            "nothing was left behind\n",
        ),
    ],
)
def test_a_full_or_closed_stream_is_a_sentence(line: str, status: int, told: str, folder: Path):
    done = _shell(line, folder)
    assert (done.returncode, done.stderr) == (status, told)
    if "--log" not in line:
        assert done.stdout == ""


def test_a_closed_standard_error_hinders_nothing(folder: Path):
    done = _shell("u2export run a.onnx p.png absent.png --out o 2>&-", folder)
    assert (done.returncode, done.stdout) == (7, "o/p.png\n")
    assert (folder / "o" / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_closed_standard_input_is_that_pictures_failure(folder: Path):
    done = _shell("u2export run a.onnx - --out o.png <&-", folder)
    assert done.returncode == 7
    assert done.stderr.startswith("u2export: error: standard input is closed\n")


def test_a_video_without_standard_input_is_a_sentence(folder: Path):
    done = _shell("u2export video a.onnx --frame 64x48 <&-", folder)
    assert (done.returncode, done.stderr) == (2, "u2export: error: standard input is closed\n")


def test_nobody_who_reads_ends_the_program_quietly(folder: Path):
    done = _shell("{ u2export backends --json; echo $? >&2; } | true", folder)
    assert done.stderr in ("141\n", "0\n")  # 0 where all was written before the pipe closed
    code = (
        "import subprocess, sys, os\n"
        "reading, writing = os.pipe(); os.close(reading)\n"
        "sys.exit(subprocess.run([sys.executable, '-m', 'u2export', 'backends'], "
        "stdout=writing).returncode)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
@pytest.mark.parametrize("kilobytes", [500_000, 600_000, 700_000])
def test_little_memory_is_a_sentence(kilobytes: int, folder: Path):
    done = _shell(f"ulimit -v {kilobytes}; u2export run a.onnx p.png --out o", folder)
    assert done.returncode in (0, 3, 5, 7)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.startswith("u2export: error: ")


def test_a_name_that_the_encoding_lacks_is_printed_with_backslashes(folder: Path):
    picture(folder / "\xfcn\xef\u2603.png")
    done = _shell(
        "u2export run a.onnx *n*.png --out o", folder, PYTHONIOENCODING="ascii", LC_ALL="C"
    )
    assert (done.returncode, done.stdout) == (0, "o/\\xfcn\\xef\\u2603.png\n"), done.stderr


def test_a_name_that_is_no_text_reaches_the_next_program_as_it_is(folder: Path):
    picture(folder / "x.png").rename(folder / os.fsdecode(b"k\xe4se.png"))
    done = subprocess.run(
        [sys.executable, "-m", "u2export", "run", "a.onnx", b"k\xe4se.png", "--out", "o"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"o/k\xe4se.png\n"


def test_a_terminal_gets_names_with_their_escapes_shown(folder: Path):
    import pty

    picture(folder / "x.png").rename(folder / "a\x1b[31m.png")
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "u2export", "run", "a.onnx", "a\x1b[31m.png", "--out", "o"]
    subprocess.run(words, cwd=folder, stdout=follower, stderr=subprocess.DEVNULL, check=True)
    os.close(follower)
    assert os.read(leader, 1000) == b"o/a\\x1b[31m.png\r\n"
    os.close(leader)
