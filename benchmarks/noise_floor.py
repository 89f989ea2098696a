"""How far apart are computations that are the same function? The floor under every fp32 budget.

    python benchmarks/noise_floor.py [--weights FILE --pictures FOLDER...]

Over drawn pictures, noise, and the photographs given: the same artifact twice, one thread against
all, a batch against single pictures, a rebuilt artifact, each runtime against PyTorch as its runner
computes, PyTorch's two memory layouts and float64. For each pair: the largest difference over all
pictures, of the raw saliency, and of the mask where the picture has a subject.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report import leave
from rich.console import Console
from rich.table import Table

from u2export.compare.metrics import MIN_CONTRAST, compare_maps
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.enums import Precision
from u2export.core.models import MODELS, PictureSpec
from u2export.core.requests import ExportSpec, RunRequest
from u2export.export.build import build_artifact
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.network import checkpoint, weights
from u2export.system.hardware import usable_cpus

DRAWN = range(2_000_000, 2_000_016)  # seeds that no weights were trained on and no check judges
BATCH = 8
Network = Callable[[Array], Array]


def inputs(spec: PictureSpec, folders: list[Path]) -> dict[str, Array]:
    """The networks' inputs by the pictures' names."""
    pictures = {f"drawn {seed}": draw_image(seed, (400, 300)).picture for seed in DRAWN}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            pictures[path.name] = open_image(io.BytesIO(path.read_bytes()))
    found = {name: preprocess(one, spec) for name, one in pictures.items()}
    shape = (1, 3, spec.size, spec.size)
    found["noise"] = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return found


def apart(first: list[Array], second: list[Array]) -> dict[str, float]:
    """The largest difference over all pictures."""
    found = [compare_maps(a, b) for a, b in zip(first, second, strict=True)]
    subject = [d for a, d in zip(first, found, strict=True) if np.ptp(a) >= MIN_CONTRAST]
    return {
        "raw max": max(d.raw_max for d in found),
        "raw mean": max(d.raw_mean for d in found),
        "mask MAE": max(d.mask_mae for d in subject),
        "mask IoU": min(d.mask_iou for d in subject),
        "boundary F": min(d.boundary_f for d in subject),
    }


def alone(network: Network, xs: list[Array]) -> list[Array]:
    """One call a picture."""
    return [network(x)[0, 0] for x in xs]


def batched(network: Network, xs: list[Array]) -> list[Array]:
    """Calls of `BATCH` pictures; the last ones are repeated to fill it."""
    maps: list[Array] = []
    for start in range(0, len(xs), BATCH):
        some = xs[start : start + BATCH]
        filled = np.concatenate(some + [some[-1]] * (BATCH - len(some)))
        maps += list(network(filled)[: len(some), 0])
    return maps


def computed(artifact: Artifact, xs: list[Array], threads: int | None = None) -> list[Array]:
    """One call a picture, in a runner of its own."""
    with registry.open_runner(artifact, RunRequest(threads=threads)) as runner:
        return alone(runner, xs)


def plain(source: Artifact, kind: torch.dtype) -> Network:
    """The reference network in PyTorch's usual memory layout."""
    network = checkpoint.load_network(source, print).to(kind)

    def call(x: Array) -> Array:
        with torch.inference_mode():
            return network(torch.from_numpy(x).to(kind)).float().numpy()

    return call


def main() -> None:
    """Compare, print the table, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="folders")
    args = parser.parse_args()
    model = MODELS["u2netp" if args.weights else "u2netp-demo"]
    source = weights.find(model, args.weights)
    xs = list(inputs(model.picture, args.pictures).values())
    rows: dict[str, dict[str, float]] = {}
    reference = computed(source, xs)
    rows["torch twice"] = apart(reference, computed(source, xs))
    rows["torch, 1 thread and all"] = apart(reference, computed(source, xs, 1))
    rows["torch, the usual memory layout"] = apart(
        reference, alone(plain(source, torch.float32), xs)
    )
    rows["torch, float64"] = apart(reference, alone(plain(source, torch.float64), xs))
    with registry.open_runner(source) as runner:
        rows[f"torch, batch {BATCH} and 1"] = apart(reference, batched(runner, xs))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        for precision in (Precision.FP32, Precision.FP16):
            spec = ExportSpec(model, model.picture.size, precision)
            for backend in ("onnx", "openvino"):
                name = f"{backend} {precision}"
                artifact = build_artifact(backend, spec, source, Path(first))
                maps = computed(artifact, xs)
                rows[f"{name} and torch"] = apart(reference, maps)
                rows[f"{name} twice"] = apart(maps, computed(artifact, xs))
                rows[f"{name}, 1 thread and all"] = apart(maps, computed(artifact, xs, 1))
                again = build_artifact(backend, spec, source, Path(second))
                rows[f"{name} rebuilt"] = apart(maps, computed(again, xs))
                free = dataclasses.replace(spec, batch=None)
                many = build_artifact(backend, free, source, Path(first))
                with registry.open_runner(many) as runner:
                    rows[f"{name}, batch {BATCH} and 1"] = apart(maps, batched(runner, xs))
    table = Table("the same function, computed as", *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(
            name, *(f"{value:.2g}" if value < 0.5 else f"{value:.6f}" for value in row.values())
        )
    Console(width=130).print(table)
    leave(
        f"noise_floor-{model.name}",
        {"weights": model.name, "pictures": len(xs), "threads": usable_cpus(), "pairs": rows},
    )


if __name__ == "__main__":
    main()
