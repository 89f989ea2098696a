"""Pictures of phones, and pictures that are still being copied."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from attacks.table import SMALL_PICTURE, picture
from conftest import POSIX
from PIL import Image

from u2export.images.decode import decode_image, read_header
from u2export.images.frames import MAX_COUNTED_PAGES, count_frames

# Stands for the plug-in: a "HEIF" file is here a PNG behind twelve bytes.
PLUGIN = """
import io
from PIL import Image, PngImagePlugin

class HeifFile(PngImagePlugin.PngImageFile):
    format = "HEIF"
    def __init__(self, fp, filename=None):
        fp.seek(12)
        super().__init__(io.BytesIO(fp.read()), filename)

def register_heif_opener():
    Image.register_open("HEIF", HeifFile, lambda prefix: prefix[4:12] == b"ftypheic")
"""


def test_pictures_of_phones_are_read_where_the_plug_in_is(command, quick: Path, tmp_path: Path):
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "pillow_heif.py").write_text(PLUGIN)
    file = io.BytesIO()
    SMALL_PICTURE.save(file, "PNG")
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + file.getvalue())
    path = os.pathsep.join([str(tmp_path / "plugin"), os.environ.get("PYTHONPATH", "")])
    done = command("run", quick, "in", "--out", "o", env={"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "o" / "a.png").read_bytes() == (tmp_path / "o" / "b.png").read_bytes()


@POSIX
def test_a_picture_that_is_still_being_copied_gets_no_error(quick: Path, tmp_path: Path):
    folder, log = tmp_path / "in", tmp_path / "l.jsonl"
    folder.mkdir()
    words = [sys.executable, "-m", "u2export", "run", str(quick), str(folder), "--watch"]
    process = subprocess.Popen(
        [*words, "--out", "o", "--log", str(log)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    content = picture(tmp_path / "whole.png").read_bytes()
    step = len(content) // 4 + 1
    for end in range(step, len(content) + step, step):  # each part rests for two scans and more
        (folder / "slow.png").write_bytes(content[:end])
        time.sleep(2)
    picture(folder / "other.png")
    _wait_for(tmp_path / "o" / "other.png")
    _wait_for(tmp_path / "o" / "slow.png")
    (folder / "never.png").write_bytes(content[:100])
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert sorted(printed.split()) == ["o/other.png", "o/slow.png"]
    assert "slow.png" not in told
    assert told.count("never.png cannot be read as a picture") == 1
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [bool(entry["error"]) for entry in entries] == [False, False, True]


def _wait_for(path: Path) -> None:
    for _ in range(120):
        if path.exists():
            return
        time.sleep(0.25)
    raise AssertionError(f"{path} never came")


def test_a_broken_second_page_does_not_cost_the_first(command, quick: Path, tmp_path: Path):
    path = tmp_path / "p.tif"
    SMALL_PICTURE.save(path, save_all=True, append_images=[SMALL_PICTURE])
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    entries = int.from_bytes(content[first : first + 2], "little")
    link = first + 2 + 12 * entries  # where the second page's directory is said to be
    second = int.from_bytes(content[link : link + 4], "little")
    content[second : second + 2] = (0).to_bytes(2, "little")  # it has no entries
    path.write_bytes(content)
    done = command("run", quick, "p.tif", "--out", "o")
    assert (done.returncode, done.stdout) == (0, "o/p.png\n"), done.stderr


def test_pages_are_counted_within_a_bound(tmp_path: Path):
    path = tmp_path / "p.tif"
    dot = Image.new("L", (1, 1))
    dot.save(path, save_all=True, append_images=[dot] * 150)
    header = read_header(path)
    assert count_frames(header) == MAX_COUNTED_PAGES == 100
    assert decode_image(header).size == (1, 1)


def test_a_count_that_met_its_bound_is_told_as_such(command, quick: Path, tmp_path: Path):
    dot = Image.new("L", (1, 1))
    dot.save(tmp_path / "p.tif", save_all=True, append_images=[dot] * 150)
    done = command("run", quick, "p.tif", "--out", "o.png")
    assert "p.tif holds at least 100 pictures; only the first was taken" in done.stderr
