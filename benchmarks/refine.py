"""Edges at full size: plain enlargement, guided filter and matting against exact masks.

    python benchmarks/refine.py [--pictures 6] [--weights u2netp.safetensors]

Pictures of 12 megapixels are drawn with a camera's grain, pressed into JPEG, and segmented; the
network's map is brought to full size in each way. Judged against the exact mask: the F measure of
the boundary within `NEAR` pixels, IoU, mean error; and seconds. /usr/bin/time tells the peak memory
of the command.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from report import leave
from rich.console import Console
from rich.progress import track
from rich.table import Table

from u2export.compare.metrics import boundary_f, iou
from u2export.core.enums import Refine
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.export.build import build_artifact
from u2export.images.compose import Composition, compose
from u2export.images.decode import open_image
from u2export.images.postprocess import stretch_saliency
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.inference.segmenter import load
from u2export.network import weights

SIZE = (4000, 3000)
SEED = 6_000_000
GRAIN = 2.5  # of 255
NEAR = 8  # pixels, 0.2 % of the longer side


def photographed(seed: int) -> tuple[bytes, np.ndarray]:
    """A JPEG of a drawn picture, and its exact mask in [0,1]."""
    drawn = draw_image(seed, SIZE)
    grain = np.random.default_rng(seed).standard_normal(SIZE[::-1], np.float32)
    values = np.asarray(drawn.picture, np.float32) + GRAIN * grain[..., None]
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=92
    )
    return file.getvalue(), np.asarray(drawn.mask, np.float32) / 255


def memory(path: Path, picture: Path, how: Refine) -> float:
    """MB at most of a run of the command."""
    program = Path(sys.executable).with_name("u2export")
    words = ["/usr/bin/time", "-f", "%M", program, "run", path, picture, "--refine", how]
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            list(map(str, words)), cwd=home, capture_output=True, text=True, check=True
        )
    return int(done.stderr.split()[-1]) * 1024 / 1e6


def main() -> None:
    """Judge all, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    args = parser.parse_args()
    model = MODELS["u2netp" if args.weights else "u2netp-demo"]
    found: dict[str, dict[str, list[float]]] = {str(how): {} for how in Refine}
    with tempfile.TemporaryDirectory() as name:
        source = weights.find(model, args.weights)
        path = build_artifact(
            "onnx", ExportSpec(model, model.picture.size), source, Path(name)
        ).path
        file = Path(name) / "picture.jpg"
        with load(path) as segment:
            for place in track(range(args.pictures), "pictures"):
                content, exact = photographed(SEED + place)
                file.write_bytes(content)
                picture = open_image(io.BytesIO(content))
                x = preprocess(picture, segment.spec)
                saliency = stretch_saliency(segment.saliency(x)[0], segment.spec)
                for how in Refine:
                    begun = time.perf_counter()
                    result = compose(saliency, SIZE, Composition(refine=how), picture)
                    passed = time.perf_counter() - begun
                    mask = np.asarray(result, np.float32) / 255
                    row = {
                        "boundary F": boundary_f(exact >= 0.5, mask >= 0.5, NEAR),
                        "IoU": iou(exact, mask),
                        "MAE": float(np.abs(exact - mask).mean()),
                        "seconds": passed,
                    }
                    for key, value in row.items():
                        found[str(how)].setdefault(key, []).append(value)
        results: dict[str, object] = {"weights": model.name, "pictures": args.pictures}
        table = Table("", "boundary F", "IoU", "MAE", "seconds", "MB at most")
        for how, figures in found.items():
            told = {key: round(float(np.median(values)), 4) for key, values in figures.items()}
            told["MB at most"] = round(memory(path, file, Refine(how)))
            results[how] = told | {
                "each": {k: [round(x, 4) for x in v] for k, v in figures.items()}
            }
            table.add_row(how, *map(str, told.values()))
    Console().print(table)
    leave("refine", results)


if __name__ == "__main__":
    main()
