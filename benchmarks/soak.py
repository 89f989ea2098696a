"""Does memory stay where it is? Thousands of pictures and of frames, for each backend.

    python benchmarks/soak.py [--pictures 2000] [--frames 10000] [--size 128]
        [--backends onnx openvino torch]

Pictures go from JPEG to PNG through `process.process_images`, as in `u2export run`; frames through
`video.convert_video`. Each backend has a process of its own, which tells its resident memory as it
goes. Growth is what the last half's memory gains: its last tenth against its first, by medians.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from report import leave
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from u2export.core.models import MODELS
from u2export.core.requests import MAX_THREADS, ExportSpec
from u2export.export.build import build_artifact
from u2export.images.synthetic import draw_image
from u2export.inference import video
from u2export.inference.process import process_images
from u2export.inference.segmenter import load
from u2export.network import weights

BACKENDS = ("onnx", "openvino", "torch")
PICTURES = 40  # different ones, taken again and again
SEED = 5_000_000
ALLOWED = 0.01  # of growth over the last half


def sizes() -> Iterator[tuple[int, int]]:
    """Sizes of pictures, from small ones to 12 megapixels."""
    draw_ = np.random.default_rng(SEED)
    for _ in range(PICTURES):
        width = int(draw_.choice([200, 640, 800, 1600, 4000], p=[0.2, 0.3, 0.3, 0.15, 0.05]))
        yield (
            width,
            max(16, round(width * float(draw_.uniform(0.6, 1.4) if width < 4000 else 0.75))),
        )


def pictures(path: Path, folder: Path, count: int) -> list[float]:
    """MB after each picture."""
    names = sorted(folder.glob("*.jpg"))
    process, found = psutil.Process(), []
    with load(path, at_once=MAX_THREADS) as segment, tempfile.TemporaryDirectory() as out:
        turns = ((one, Path(out, f"{one.stem}.png")) for one in itertools.cycle(names))
        for done in process_images(segment, itertools.islice(turns, count)):
            if done.error:
                raise RuntimeError(done.error)
            found.append(process.memory_info().rss / 1e6)
            print(len(found), flush=True)
    return found


class _Frames(io.RawIOBase):
    """So many frames of a size, and memory noted with each."""

    def __init__(self, size: tuple[int, int], count: int) -> None:
        rng = np.random.default_rng(SEED)
        self._frames = [
            draw_image(int(s), size).picture.tobytes() for s in rng.integers(1e6, size=8)
        ]
        self._left, self.found = count, [0.0] * 0
        self._process = psutil.Process()

    def read(self, _: int = -1) -> bytes:
        if not self._left:
            return b""
        self._left -= 1
        self.found.append(self._process.memory_info().rss / 1e6)
        print(len(self.found), flush=True)
        return self._frames[self._left % len(self._frames)]


def frames(path: Path, count: int) -> list[float]:
    """MB at each frame."""
    reel = video.FrameFormat((320, 240), cutout=True, smooth=0.5)
    source = _Frames(reel.size, count)
    with load(path, at_once=MAX_THREADS) as segment, open("/dev/null", "wb") as sink:
        if video.convert_video(segment, source, sink, reel) != count:
            raise RuntimeError("frames were lost")
    return source.found


def growth(found: list[float]) -> dict[str, object]:
    """Memory of the last half: at its beginning, at its end, and how much more that is."""
    half = found[len(found) // 2 :]
    tenth = max(1, len(half) // 10)
    first, last = float(np.median(half[:tenth])), float(np.median(half[-tenth:]))
    return {
        "taken": len(found),
        "MB at half": round(first, 1),
        "MB at the end": round(last, 1),
        "growth": round(last / first - 1, 4),
        "reached": last / first - 1 <= ALLOWED,
    }


def apart(what: str, path: Path, folder: Path, count: int, tick: Progress) -> dict[str, object]:
    """Measure in a process of its own."""
    words = [sys.executable, __file__, "--work", what, str(path), str(folder), str(count)]
    task = tick.add_task(f"{path.name}, {what}", total=count)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("["):
                return growth(json.loads(line))
            tick.update(task, completed=int(line))
    raise RuntimeError(f"{path.name}: the process ended with {process.returncode}")


def main() -> None:
    """Measure all, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--size", type=int, default=128, help="of the network's input, pixels")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        what, path, folder, count = args.work
        measured = (
            pictures(Path(path), Path(folder), int(count))
            if what == "pictures"
            else frames(Path(path), int(count))
        )
        print(json.dumps(measured))
        return
    results: dict[str, object] = {"size": args.size}
    table = Table("", "taken", "MB at half", "MB at the end", "growth")
    with tempfile.TemporaryDirectory() as name, Progress(console=Console(stderr=True)) as tick:
        home, model = Path(name), MODELS["u2netp-demo"]
        for place, size in enumerate(sizes()):
            draw_image(SEED + place, size).picture.save(home / f"{place:02}.jpg", quality=92)
        for backend in args.backends:
            size = args.size if backend != "torch" else model.picture.size
            source = weights.find(model)
            path = build_artifact(backend, ExportSpec(model, size), source, home).path
            jobs = {"pictures": args.pictures}
            if backend == "onnx" and args.frames:
                jobs["frames"] = args.frames
            for what, count in jobs.items():
                row = apart(what, path, home, count, tick)
                results[f"{backend}, {what}"] = row
                table.add_row(f"{backend}, {what}", *map(str, list(row.values())[:4]))
    Console().print(table)
    some = [] if set(args.backends) == set(BACKENDS) else args.backends
    leave("-".join(["soak", *some]), results)


if __name__ == "__main__":
    main()
