"""Do real weights give the authors' own masks through ONNX, and what does half precision cost?

    python benchmarks/author_masks.py --shared ../shared

Needs a folder with `weights/u2netp.safetensors`, `images/salient` and `images/author_masks`. Runs
the two commands a user would type, then compares: the PNG masks with the published ones, raw
saliency of the ONNX files with PyTorch, and emulated half precision with PyTorch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import leave

from u2export.compare.emulate import EmulatedNetwork
from u2export.compare.metrics import Difference, compare_maps
from u2export.core import registry
from u2export.core.enums import Precision
from u2export.core.models import MODELS, PictureSpec
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.network import checkpoint, weights

MODEL = MODELS["u2netp"]


def u2export(*words: object) -> tuple[str, float]:
    """Run the command line; give what it printed and the seconds it took."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "u2export", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip(), time.perf_counter() - begun


def against_published(masks: Path, published: Path) -> dict[str, float]:
    """Mean absolute difference of each mask from the published one, in [0,1]."""
    found = {}
    for path in sorted(masks.iterdir()):
        ours = np.asarray(Image.open(path), np.float64)
        theirs = np.asarray(Image.open(published / path.name).convert("L"), np.float64)
        found[path.stem] = round(float(np.abs(ours - theirs).mean() / 255), 5)
    return found


def summary(differences: list[Difference]) -> dict[str, float]:
    """Mean and worst of each metric over the pictures."""
    ious = [d.mask_iou for d in differences]
    return {
        "raw max": max(d.raw_max for d in differences),
        "raw mean": float(np.mean([d.raw_mean for d in differences])),
        "mask MAE": float(np.mean([d.mask_mae for d in differences])),
        "mask IoU": float(np.mean(ious)),
        "mask IoU, worst": min(ious),
    }


def main() -> None:
    """Export, run, compare, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    shared = parser.parse_args().shared
    given = shared / "weights/u2netp.safetensors"
    pictures = sorted((shared / "images/salient").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        words = ("onnx", "--model", "u2netp", "--weights", given, "--out", out)
        (fp32, fp32_s), (fp16, fp16_s) = u2export(*words), u2export(*words, "--fp16")
        u2export("run", fp32, shared / "images/salient", "--out", out / "masks32")
        u2export("run", fp16, shared / "images/salient", "--out", out / "masks16")
        published = shared / "images/author_masks"
        masks32, masks16 = (
            against_published(out / name, published) for name in ("masks32", "masks16")
        )
        inputs = [preprocess(open_image(path), PictureSpec()) for path in pictures]
        network = checkpoint.load_network(weights.find(MODEL, str(given)), print)
        with torch.inference_mode():
            references = [network(torch.tensor(x)).numpy()[0, 0] for x in inputs]
        executed = {}
        for name, path in (("fp32", fp32), ("fp16", fp16)):
            with registry.open_runner(registry.open_artifact(Path(path))) as runner:
                found = [runner(x)[0, 0] for x in inputs]
            executed[name] = summary(
                [compare_maps(a, b) for a, b in zip(references, found, strict=True)]
            )
        in_half = EmulatedNetwork(network, Precision.FP16)
        emulated = [in_half(x)[0, 0] for x in inputs]
    figures = {
        "mean absolute difference from the authors' masks, fp32": float(
            np.mean(list(masks32.values()))
        ),
        "the same, fp16": float(np.mean(list(masks16.values()))),
        "by picture, fp32": masks32,
        "ONNX fp32 against PyTorch": executed["fp32"],
        "ONNX fp16 as onnxruntime's CPU provider computes it, against PyTorch": executed["fp16"],
        "half-precision arithmetic, emulated, against PyTorch": summary(
            [compare_maps(a, b) for a, b in zip(references, emulated, strict=True)]
        ),
        "seconds to export": {"fp32": round(fp32_s, 1), "fp16": round(fp16_s, 1)},
    }
    leave("author_masks", figures)


if __name__ == "__main__":
    main()
