"""Pictures on a Ray cluster: every one done once, whatever dies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from u2export.images.synthetic import draw_image
from u2export.system.files import remove_partials

COUNT = 96
# Runs in a process of its own: Ray changes signals, threads and warnings of the one it is in.
SCRIPT = """
import json, sys
from pathlib import Path
from u2export import ray
from u2export.inference.process import ImageOptions

artifact, folder, out, skip = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "skip"
pairs = [(path, f"{out}/{path.stem}.png") for path in sorted(folder.iterdir())]
for done in ray.map_pictures(artifact, pairs, ImageOptions(hash_files=True), skip_existing=skip):
    told = [str(done.picture), str(done.output), done.error, done.sha256, done.size]
    print(json.dumps(told), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "in"
    place.mkdir()
    picture = draw_image(1_000_700, (1600, 1200)).picture
    for n in range(COUNT):
        picture.save(place / f"{n:03}.jpg", quality=80 + n % 10)
    (place / "050.jpg").write_bytes(b"broken")
    return place


def _started(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _actors(parent: int) -> list[psutil.Process]:
    """Processes of the cluster that hold a runner."""
    below = psutil.Process(parent).children(recursive=True)
    return [p for p in below if "MapWorker" in " ".join(p.cmdline())]


def _check(told: list[list[object]], out: Path) -> None:
    assert len({picture for picture, *_ in told}) == len(told)  # none was told of twice
    assert [Path(str(p)).stem for p, _, error, *_ in told if error] == ["050"]
    results = sorted(out.glob("*.png"))
    assert len(results) == COUNT - 1
    for path in results:
        with Image.open(path) as found:
            found.load()
            assert found.size == (1600, 1200)
    assert not list(out.glob(".*"))


@pytest.mark.timeout(240)
def test_a_worker_that_is_killed_loses_no_picture(quick: Path, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    with _started(quick, folder, out, "all") as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("*.png"))) < 20:
            assert time.monotonic() < deadline, "the cluster does not work"
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        victim = _actors(process.pid)[0]
        victim.kill()
        there = len(list(out.glob("*.png")))
        assert there < COUNT - 20, "it was nearly done: nothing was tested"
        told = [
            json.loads(line) for line in process.stdout if line.startswith("[")
        ]  # Ray talks too
        assert process.wait() == 0, process.stderr.read()
    assert len(told) == COUNT
    remove_partials({out})  # what the dead one was writing
    _check(told, out)


@pytest.mark.timeout(240)
def test_a_run_that_broke_off_goes_on(quick: Path, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    for n in range(30):
        Image.new("L", (1600, 1200)).save(out / f"{n:03}.png")
    with _started(quick, folder, f"file://{out}", "skip") as process:
        told = [
            json.loads(line) for line in process.stdout if line.startswith("[")
        ]  # Ray talks too
        assert process.wait() == 0, process.stderr.read()
    assert sorted(Path(p).stem for p, *_ in told) == [f"{n:03}" for n in range(30, COUNT)]
    assert all(len(sha256) == 64 for _, _, error, sha256, _ in told if not error)
    _check(told, out)


def test_the_command_gives_results_on_standard_output_alone(command, quick, tmp_path: Path):
    (tmp_path / "in").mkdir()
    for n in range(3):
        draw_image(1_000_700 + n, (60, 40)).picture.save(tmp_path / f"in/{n}.jpg")
    done = command("run", quick, "in", "--out", "o", "--engine", "ray", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [f"{tmp_path}/o/{n}.png" for n in range(3)]
    for words in (["-"], ["in", "--watch"], ["in/0.jpg", "--out", "-"]):
        refused = command("run", quick, *words, "--engine", "ray")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "Ray takes pictures and results in files" in refused.stderr
