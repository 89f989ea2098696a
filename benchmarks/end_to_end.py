"""From picture file to mask file: `u2export run` beside `rembg i` and `rembg p`, in turns.

    python benchmarks/end_to_end.py [--weights u2netp.safetensors] [--calibration FOLDER]
        [--rounds 4] [--only "12 megapixels"]

Both get the same weights and the same JPEGs, as a user would type it; rembg is installed into an
environment of its own. Told are one picture, from the start of the process to the file; a folder,
likewise; and what the pictures after the first took, as the folder less one picture's. The JPEGs
are drawn, with a camera's grain. rembg writes folders as PNG only, so our WebP stands beside its
PNG. The masks of both are compared, so that nobody is fast because of a wrong one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from environments import REMBG, as_installed, install
from PIL import Image
from rembg_compat import difference
from report import leave
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from u2export.benchmark import stats
from u2export.core.arrays import Array
from u2export.core.enums import Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec, Quantization
from u2export.export.build import build_artifact
from u2export.images.inputs import image_files
from u2export.images.synthetic import draw_image
from u2export.network import weights

# width and height, and pictures in the folder: so many that they outweigh a start's noise
SIZES = {"770x595": ((770, 595), 16), "12 megapixels": ((4000, 3000), 10)}
SEED = 4_000_000
GRAIN = 2.5  # of 255, standard deviation: a camera's at a middling sensitivity
THEIRS = "rembg"
OURS = (("onnx", Precision.FP32), ("openvino", Precision.FP16))
# ours, rembg's, and what ours ends in
KINDS = {
    "mask": ([], ["-om"], "png"),
    "PNG cut-out": (["--cutout"], [], "png"),
    "WebP cut-out": (["--cutout", "--format", "webp"], [], "webp"),
}


@dataclass(frozen=True)
class Turn:
    """What one process did.

    Attributes:
        ms: from its start to its end.
        mb: its largest resident memory.
    """

    ms: float
    mb: float


def taken(words: Sequence[object], home: Path) -> Turn:
    """Run a command.

    Raises:
        RuntimeError: it failed.
    """
    memory = home / "memory.txt"
    # a process of its own asks: what this one holds would count as the child's
    words = ["/usr/bin/time", "-f", "%M", "-o", memory, *words]
    begun = time.perf_counter()
    with (home / "said.log").open("w") as log:
        done = subprocess.run(
            list(map(str, words)),
            stdout=log,
            stderr=log,
            cwd=home,
            env=as_installed(U2NET_HOME=str(home)),
            check=False,
        )
    passed = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{words}: {(home / 'said.log').read_text()[-500:]}")
    return Turn(1e3 * passed, int(memory.read_text().split()[-1]) * 1024 / 1e6)


class Contest:
    """Everybody's commands, and what they took."""

    def __init__(self, home: Path, files: Sequence[Path], rembg: Path) -> None:
        """Name the parties: rembg first, which the ratios are taken against."""
        self._home, self._rembg = home, rembg
        self.files = {path.name: path for path in files}
        self._model = next(path for path in files if path.suffix == ".onnx")
        self.parties = (THEIRS, *self.files)

    def words(self, party: str, kind: str, source: Path, out: Path) -> list[object]:
        """What a user types."""
        ours, theirs, _ = KINDS[kind]
        if party != THEIRS:
            program = Path(sys.executable).with_name("u2export")
            return [program, "run", self.files[party], source, *ours, "--out", out]
        options = ["-m", "u2net_custom", "-x", json.dumps({"model_path": str(self._model)})]
        verb = "p" if source.is_dir() else "i"
        return [self._rembg, verb, *options, *theirs, source, out]

    def take(self, party: str, kind: str, source: Path, out: Path) -> Turn:
        """Run one party's command into a new folder, and count what it wrote there.

        Raises:
            RuntimeError: not every picture has its result; rembg does not say so itself.
        """
        out.mkdir(parents=True)  # rembg leaves out what is there already
        count = len(list(source.iterdir())) if source.is_dir() else 1
        ending = "png" if party == THEIRS else KINDS[kind][2]
        target = out if source.is_dir() else out / f"{source.stem}.{ending}"
        turn = taken(self.words(party, kind, source, target), self._home)
        if (written := len(list(out.glob(f"*.{ending}")))) != count:
            raise RuntimeError(f"{party} wrote {written} of {count} results")
        return turn


def drawn(folder: Path, size: tuple[int, int], count: int) -> Path:
    """Write JPEGs of a size into a folder."""
    folder.mkdir()
    for place in range(count):
        picture = np.asarray(draw_image(SEED + place, size).picture, np.float32)
        grain = np.random.default_rng(place).standard_normal(picture.shape[:2], np.float32)
        grainy = np.clip(np.rint(picture + GRAIN * grain[..., None]), 0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(folder / f"{place}.jpg", quality=92)
    return folder


def figures(
    one: dict[str, list[Turn]], many: dict[str, list[Turn]], more: int
) -> dict[str, dict[str, object]]:
    """Cold, warm and memory of each party, against rembg.

    Args:
        one: turns with a single picture.
        many: turns with a folder.
        more: pictures in the folder beyond the first.
    """
    cold = {name: np.array([turn.ms for turn in turns]) for name, turns in one.items()}
    whole = {name: np.array([turn.ms for turn in turns]) for name, turns in many.items()}
    rows: dict[str, dict[str, object]] = {}
    for name in one:
        row: dict[str, object] = {}
        further = further_ms(whole[name], cold[name], more)
        row["one picture, ms"] = round(float(np.median(cold[name])))
        row |= told("one picture", stats.latency_ratio(cold[THEIRS][:, None], cold[name][:, None]))
        row["folder, s"] = round(float(np.median(whole[name])) / 1e3, 2)
        row |= told("folder", stats.latency_ratio(whole[THEIRS][:, None], whole[name][:, None]))
        row["each further picture, ms"] = round(float(further))
        row |= told("each further picture", faster(whole, cold, name, more))
        memory = {party: float(np.median([turn.mb for turn in many[party]])) for party in many}
        row["MB, folder"] = round(memory[name])
        row["MB, share of rembg's"] = round(memory[name] / memory[THEIRS], 2)
        rows[name] = row
    return rows


def further_ms(whole: Array, cold: Array, more: int) -> Array:
    """What a picture after the first took: by medians of the rounds, which are the last axis."""
    return (np.median(whole, axis=-1) - np.median(cold, axis=-1)) / more


def faster(whole: dict[str, Array], cold: dict[str, Array], name: str, more: int) -> stats.Interval:
    """How many times faster than rembg's a further picture is, bootstrapped over the rounds."""
    rounds = np.arange(len(cold[name]))

    def times(picked: Array, axis: int) -> Array:  # rounds are the last axis, or the only one
        chosen = picked.astype(int)
        theirs, ours = (
            further_ms(whole[party][chosen], cold[party][chosen], more) for party in (THEIRS, name)
        )
        return np.asarray(theirs / ours)

    return stats.bootstrap_interval(rounds, times, independent=True)


def told(label: str, found: stats.Interval) -> dict[str, object]:
    """A ratio and its interval, as cells."""
    return {
        f"{label}, times faster": round(found.value, 2),
        f"{label}, 95 %": [round(found.low, 2), round(found.high, 2)],
    }


def main() -> None:
    """Measure in turns, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--calibration", type=Path, help="pictures for an int8 file; else none")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", choices=SIZES)
    args = parser.parse_args()
    model = MODELS["u2netp" if args.weights else "u2netp-demo"]
    source = weights.find(model, args.weights)
    sizes = {name: SIZES[name] for name in SIZES if args.only in (None, name)}
    results: dict[str, object] = {"weights": model.name, "rembg": REMBG}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        files = [
            build_artifact(backend, ExportSpec(model, 320, precision), source, home).path
            for backend, precision in OURS
        ]
        if args.calibration:
            asked = Quantization(tuple(image_files([args.calibration])))
            spec = ExportSpec(model, 320, Precision.INT8, quantization=asked)
            files.append(build_artifact("openvino", spec, source, home).path)
        rembg = install(home / "environment", REMBG).with_name("rembg")
        contest, order = Contest(home, files, rembg), random.Random(0)
        total = len(sizes) * len(KINDS) * (args.rounds + 1) * len(contest.parties)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("in turns", total=total)
            for label, (size, count) in sizes.items():
                pictures = drawn(home / label, size, count)
                for kind in KINDS:
                    one: dict[str, list[Turn]] = {party: [] for party in contest.parties}
                    many: dict[str, list[Turn]] = {party: [] for party in contest.parties}
                    for turn in range(args.rounds + 1):  # the first warms the file caches
                        for party in order.sample(contest.parties, len(contest.parties)):
                            out = home / "out" / party / label / kind / str(turn)
                            single = contest.take(party, kind, pictures / "0.jpg", out / "one")
                            folder = contest.take(party, kind, pictures, out / "many")
                            if turn:
                                one[party].append(single)
                                many[party].append(folder)
                            progress.advance(task)
                    rows = figures(one, many, count - 1)
                    if kind == "mask":
                        for party in contest.files:
                            masks = Path(label, "mask", str(args.rounds), "many")
                            apart = compared(
                                home / "out" / THEIRS / masks, home / "out" / party / masks
                            )
                            rows[party]["mask apart from rembg's, mean"] = apart
                    show(f"{label}, {kind}", rows)
                    results[f"{label}, {kind}"] = rows
    leave("-".join(["end_to_end", *(args.only or "").split()]), results)


def compared(theirs: Path, ours: Path) -> float:
    """Mean absolute difference of our masks from rembg's, in [0,1]."""
    found = []
    for path in sorted(theirs.glob("*.png")):
        with Image.open(path) as picture:
            gray = picture.convert("L")
        gray.save(path)
        found.append(difference(ours / path.name, path))
    return round(float(np.mean(found)), 5)


def show(title: str, rows: dict[str, dict[str, object]]) -> None:
    """Print one table."""
    table = Table("", *next(reversed(rows.values())), title=title)
    for name, row in rows.items():
        table.add_row(name, *map(str, row.values()))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
