"""What each runtime keeps of real weights, what its builds take, and what its cache saves.

    python benchmarks/runtimes.py --shared ../shared

Exports u2netp in every format as a user would, compares raw saliency and masks of all that runs
here with PyTorch over photographs, builds TensorRT-RTX engines twice, and starts an OpenVINO runner
with an empty and with a filled cache, in turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from author_masks import MODEL, summary, u2export
from report import leave

from u2export.compare.metrics import compare_maps
from u2export.core import registry
from u2export.core.enums import Precision
from u2export.core.models import PictureSpec
from u2export.core.requests import ExportSpec
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.network import checkpoint, weights

STARTS = 7
# Opens the artifact and infers once; prints the seconds for opening, and for the first inference.
START = """
import sys, time, numpy as np
from pathlib import Path
from u2export.core import registry
import openvino
artifact = registry.open_artifact(Path(sys.argv[1]))
x = np.zeros((1, 3, artifact.facts.size, artifact.facts.size), np.float32)
begun = time.perf_counter()
runner = registry.open_runner(artifact)
opened = time.perf_counter()
runner(x)
print(opened - begun, time.perf_counter() - opened, int(runner.from_cache))
"""
# What OpenVINO itself needs to bring a compiled model back: the floor of a warm start.
EXPORTED = """
import sys, openvino
compiled = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
open(sys.argv[2], "wb").write(compiled.export_model().getvalue())
"""
IMPORTED = """
import sys, time, openvino
content = open(sys.argv[1], "rb").read()
begun = time.perf_counter()
openvino.Core().import_model(content, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print(time.perf_counter() - begun)
"""


def kept(out: Path, given: Path, pictures: list[Path]) -> dict[str, object]:
    """Compare what runs here with PyTorch."""
    inputs = [preprocess(open_image(path), PictureSpec()) for path in pictures]
    network = checkpoint.load_network(weights.find(MODEL, str(given)), print)
    with torch.inference_mode():
        references = [network(torch.tensor(x)).numpy()[0, 0] for x in inputs]
    found: dict[str, object] = {}
    for path in sorted(out.glob("*.onnx")) + sorted(out.glob("*.xml")):
        with registry.open_runner(registry.open_artifact(path)) as runner:
            maps = [runner(x)[0, 0] for x in inputs]
            ran = runner.executed()
        differences = [compare_maps(a, b) for a, b in zip(references, maps, strict=True)]
        found[path.name] = {
            **summary(differences),
            "ran": ran.summary(),
            "runtime": ran.runtime,
            "computing layers": len(ran.arithmetic),
        }
    return found


def engines(parents: dict[str, Path], out: Path) -> dict[str, object]:
    """Build each engine twice; give seconds, size, and whether the bytes are equal."""
    from u2export.backends.tensorrt.build import export

    found: dict[str, object] = {}
    for name, parent in parents.items():
        artifact = registry.open_artifact(parent)
        spec = ExportSpec(
            MODEL, artifact.facts.size, artifact.facts.precision, artifact.facts.batch
        )
        seconds, digests = [], []
        for place in ("one.engine", "two.engine"):
            begun = time.perf_counter()
            export(artifact, spec, out / place)
            seconds.append(round(time.perf_counter() - begun, 2))
            digests.append(hashlib.sha256((out / place).read_bytes()).hexdigest())
        found[name] = {
            "seconds": seconds,
            "MB": round((out / "one.engine").stat().st_size / 1e6, 1),
            "byte-identical": digests[0] == digests[1],
        }
    return found


def starts(artifact: Path, folder: Path) -> dict[str, object]:
    """Open with an empty and with a filled cache, in turns."""
    opening: dict[str, list[float]] = {"cold": [], "warm": []}
    first: dict[str, list[float]] = {"cold": [], "warm": []}
    floor = []
    blob = folder / "blob"
    python = [sys.executable, "-c"]
    subprocess.run([*python, EXPORTED, str(artifact), str(blob)], check=True)
    for _ in range(STARTS):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for kind in opening:
            environment = {**os.environ, "U2EXPORT_CACHE": str(folder / "cache")}
            done = subprocess.run(
                [*python, START, str(artifact)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            opened, inferred, cached = done.stdout.split()
            assert cached == str(int(kind == "warm"))
            opening[kind].append(float(opened))
            first[kind].append(float(inferred))
        bare = subprocess.run(
            [*python, IMPORTED, str(blob)], check=True, stdout=subprocess.PIPE, text=True
        )
        floor.append(float(bare.stdout))
    medians = {kind: statistics.median(values) for kind, values in opening.items()}
    return {
        "opening, seconds, median": {k: round(v, 3) for k, v in medians.items()},
        "opening, seconds, all": {k: [round(s, 3) for s in v] for k, v in opening.items()},
        "first inference, seconds, median": {
            k: round(statistics.median(v), 3) for k, v in first.items()
        },
        "warm is faster by": round(medians["cold"] / medians["warm"], 2),
        "of which OpenVINO's own import, seconds, median": round(statistics.median(floor), 3),
    }


def main() -> None:
    """Export, compare, build, start, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    shared = parser.parse_args().shared
    given = shared / "weights/u2netp.safetensors"
    pictures = sorted((shared / "images/salient").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "exported"
        words = ("--model", "u2netp", "--weights", given, "--out", out)
        seconds = {}
        for backend in ("onnx", "openvino", "tensorrt"):
            for half in ((), ("--fp16",)):
                path, took = u2export(backend, *words, *half)
                seconds[Path(path).name] = round(took, 1)
        figures: dict[str, object] = {
            "pictures": len(pictures),
            "against PyTorch": kept(out, given, pictures),
            "seconds of each command, in this order": seconds,
        }
        dynamic, _ = u2export("onnx", *words, "--batch", "dynamic")
        parents = {str(p): out / f"u2netp-{p}.onnx" for p in (Precision.FP32, Precision.FP16)}
        parents["fp32, batch 1:4:8"] = Path(dynamic)
        figures["TensorRT-RTX engines"] = engines(parents, Path(folder))
        figures["OpenVINO start"] = starts(out / "u2netp-fp32.xml", Path(folder))
        full, _ = u2export("openvino", "--model", "u2net", "--weights", "random:0", "--out", out)
        figures["OpenVINO start, u2net with random weights"] = starts(Path(full), Path(folder))
    leave("runtimes", figures)


if __name__ == "__main__":
    main()
