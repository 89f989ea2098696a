"""Do stages add up, and do two cores halve them? A folder with one thread and with all.

    python benchmarks/overlap.py [--weights u2netp.safetensors] [--rounds 4]

With one thread the stages of all pictures must add up to the wall time. With all, the ideal is the
one thread's wall time divided by the threads. The two take turns on the same pictures.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np
from end_to_end import drawn
from report import leave
from rich.console import Console
from rich.progress import track
from rich.table import Table

from u2export.core.enums import Stage
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.export.build import build_artifact
from u2export.images.compose import Composition
from u2export.inference.process import ImageOptions, process_images
from u2export.inference.segmenter import Segmenter, load
from u2export.network import weights
from u2export.system.hardware import usable_cpus

COUNT = 12  # pictures
KINDS = {"mask": ImageOptions(), "PNG cut-out": ImageOptions(composition=Composition(cutout=True))}


def taken(segment: Segmenter, folder: Path, order: ImageOptions) -> tuple[float, dict[str, float]]:
    """Wall time, and the sum of each stage over the pictures; ms a picture."""
    with tempfile.TemporaryDirectory() as out:
        pairs = [(path, Path(out, f"{path.stem}.png")) for path in sorted(folder.iterdir())]
        begun = time.perf_counter()
        done = list(process_images(segment, pairs, order))
        wall = 1e3 * (time.perf_counter() - begun)
    sums = {name: sum(one.ms[name] for one in done) / len(done) for name in Stage}
    return wall / len(done), sums


def main() -> None:
    """Measure, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    model = MODELS["u2netp" if args.weights else "u2netp-demo"]
    threads, order = usable_cpus(), random.Random(0)
    results: dict[str, object] = {"weights": model.name, "threads": threads, "pictures": COUNT}
    table = Table(
        "", *map(str, Stage), "added up", "wall, 1 thread", f"wall, {threads}", "by the ideal"
    )
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        path = build_artifact(
            "onnx", ExportSpec(model, model.picture.size), weights.find(model, args.weights), home
        ).path
        folder = drawn(home / "in", (4000, 3000), COUNT)
        with (
            load(path, threads=1) as one,
            load(path, threads=threads, at_once=threads) as all_,
        ):
            for kind, wanted in KINDS.items():
                alone, many, sums = [], [], []
                for turn in track(range(args.rounds + 1), kind):
                    for segment in order.sample([one, all_], 2):
                        wall, stages = taken(segment, folder, wanted)
                        if turn and segment is one:
                            alone.append(wall)
                            sums.append(stages)
                        elif turn:
                            many.append(wall)
                stages = {s: float(np.median([x[s] for x in sums])) for s in Stage}
                parts = [sum(x.values()) / w for x, w in zip(sums, alone, strict=True)]
                ideal = [m / (a / threads) for m, a in zip(many, alone, strict=True)]
                row = {
                    "stages, ms": {s: round(ms, 1) for s, ms in stages.items()},
                    "stages added up by wall, one thread": round(float(np.median(parts)), 4),
                    "wall, one thread, ms a picture": round(float(np.median(alone)), 1),
                    f"wall, {threads} threads, ms a picture": round(float(np.median(many)), 1),
                    "wall by the ideal": [round(x, 3) for x in sorted(ideal)],
                }
                results[kind] = row
                cells = [*row["stages, ms"].values(), *list(row.values())[1:4]]
                table.add_row(kind, *map(str, cells), f"{np.median(ideal):.3f}")
    Console(width=150).print(table)
    leave("overlap", results)


if __name__ == "__main__":
    main()
