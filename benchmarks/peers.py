"""Our files beside what people run today: one input, the same threads, in turns.

    python benchmarks/peers.py [--weights u2netp.safetensors] [--rounds 12]

Ours are measured by the workers of `u2export bench`. Each peer runs in a process of its own, rembg
in an environment of its own that is installed for this, and answers the same orders; what it
computes is compared with PyTorch's saliency. A peer that cannot be installed here is named with the
reason. OpenVINO's benchmark_app brings its own loop: it is started once a round.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from report import leave
from rich.console import Console
from rich.progress import track
from rich.table import Table

from u2export import build, registry, weights
from u2export.bench import stats
from u2export.bench.crew import Worker
from u2export.bench.worker import Assignment
from u2export.benching import drawn_pictures
from u2export.machine import usable_cpus
from u2export.parity.metrics import compare
from u2export.pipeline import open_picture, preprocess
from u2export.spec import MODELS, ExportSpec, Precision

BLOCK_SECONDS, LEAST = 0.5, 3
REMBG = "rembg[cpu]==2.0.86"
# Answers the orders that a worker of ours answers, around a `call(x)` that the peer defines.
SERVER = """
import json, os, sys, time
import numpy as np
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
model, threads = sys.argv[1], int(sys.argv[2])
x = np.load(sys.argv[3])
{setup}
y = np.asarray(call(x), np.float32)
np.save(sys.argv[4], y.reshape(y.shape[-2:]))
out.write("ready\\n"); out.flush()
for line in sys.stdin:
    order = json.loads(line)
    call(x)
    samples, begun = [], time.perf_counter()
    while len(samples) < order["least"] or time.perf_counter() - begun < order["seconds"]:
        start = time.perf_counter()
        call(x)
        samples.append(1e3 * (time.perf_counter() - start))
    out.write(json.dumps(samples) + "\\n"); out.flush()
"""
ORT = """
import onnxruntime as ort
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
call = lambda x: session.run(None, {name: x})[0]
"""
OPENVINO = """
import openvino as ov
compiled = ov.Core().compile_model(model, "CPU")
call = lambda x: compiled([x])[0]
"""
TORCH = """
import torch
from pathlib import Path
from u2export import checkpoint, registry
network = checkpoint.network(registry.open_artifact(Path(model)), print)
torch.set_num_threads(threads)
{compiled}
def call(x):
    with torch.inference_mode():
        return network(torch.from_numpy(x)).numpy()
"""
SESSION = """
from rembg import new_session
session = new_session("u2net_custom", model_path=model).inner_session
name = session.get_inputs()[0].name
call = lambda x: session.run(None, {name: x})[0]
"""


@dataclass(frozen=True)
class Peer:
    """What people run today.

    Attributes:
        name: in the table.
        setup: Python that defines `call`.
        file: suffix of the file of ours that it loads.
        package: what is installed into an environment of its own; empty for this one.
    """

    name: str
    setup: str
    file: str
    package: str = ""


PEERS = (
    Peer("onnxruntime as it comes", ORT, ".onnx"),
    Peer("rembg's session", SESSION, ".onnx", REMBG),
    Peer("OpenVINO as it comes", OPENVINO, ".xml"),
    Peer("PyTorch eager", TORCH.replace("{compiled}", ""), ".safetensors"),
    Peer(
        "PyTorch compiled",
        TORCH.replace("{compiled}", "network = torch.compile(network)"),
        ".safetensors",
    ),
)


class Rival:
    """A peer's process."""

    def __init__(self, peer: Peer, folder: Path, files: dict[str, Path], given: Path) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended before.
        """
        python = _environment(peer, folder) if peer.package else Path(sys.executable)
        self.answer = folder / f"{peer.name.replace(' ', '-')}.npy"
        words = [files[peer.file], usable_cpus(), given, self.answer]
        code = SERVER.replace("{setup}", peer.setup)
        with (folder / "peer.log").open("w") as log:
            self._process = subprocess.Popen(
                [python, "-c", code, *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "U2NET_HOME": str(folder)},
                cwd=folder,
            )
        assert self._process.stdout
        if self._process.stdout.readline() != "ready\n":
            words = (folder / "peer.log").read_text().strip().splitlines()
            raise RuntimeError(words[-1][:200] if words else "it said nothing")

    def block(self) -> list[float]:
        """Samples of one turn, ms."""
        assert self._process.stdin
        assert self._process.stdout
        order = json.dumps({"seconds": BLOCK_SECONDS, "least": LEAST})
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        found: list[float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def _environment(peer: Peer, folder: Path) -> Path:
    """Install a peer into an environment of its own; give its Python."""
    where = folder / "environment"
    venv.create(where, with_pip=True)
    python = where / "bin/python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", peer.package], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1][:200])
    return python


def benchmark_app(path: Path) -> list[float]:
    """What OpenVINO's own tool says is the median of a short run, float32, ms."""
    tool = Path(sys.executable).with_name("benchmark_app")
    words = [tool, "-m", path, "-d", "CPU", "-hint", "latency", "-nthreads", usable_cpus()]
    words += ["-t", "1", "-infer_precision", "f32"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
    found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    if not found:
        raise RuntimeError("benchmark_app told no median")
    return [float(found[1])]


def main() -> None:
    """Measure in turns, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    model = MODELS["u2netp" if args.weights else "u2netp-demo"]
    source = weights.find(model, args.weights)
    absent: dict[str, str] = {}
    blocks: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = [
            build.build(backend, ExportSpec(model, 320, precision), source, folder)
            for backend in ("onnx", "openvino")
            for precision in (Precision.FP32, Precision.FP16)
        ]
        torch_file = build.build("torch", ExportSpec(model, 320), source, folder).path
        files = {one.path.suffix: one.path for one in reversed(ours)}
        files = {suffix: path for suffix, path in files.items() if "fp32" in path.name}
        files[".safetensors"] = torch_file
        pictures = drawn_pictures(folder)
        x = preprocess(open_picture(pictures[0]), model.picture)
        np.save(folder / "x.npy", x)
        with registry.open_runner(source) as runner:
            expected = runner(x)[0, 0]
        workers = {
            f"u2export, {one.path.name}": Worker(
                Assignment(artifact=one.path, backend=one.backend, inputs=folder / "x.npy")
            )
            for one in ours
        }
        rivals: dict[str, Rival] = {}
        try:
            for worker in workers.values():
                worker.open()
            for peer in PEERS:
                try:
                    rivals[peer.name] = Rival(peer, folder, files, folder / "x.npy")
                except RuntimeError as error:
                    absent[peer.name] = str(error)
            for _ in track(range(args.rounds), "measuring in turns"):
                for label, worker in workers.items():
                    found = worker.ask("block", seconds=BLOCK_SECONDS, least=LEAST)["samples"]
                    blocks.setdefault(label, []).append(found)
                for label, rival in rivals.items():
                    blocks.setdefault(label, []).append(rival.block())
                found = benchmark_app(files[".xml"])
                blocks.setdefault("OpenVINO's benchmark_app, float32", []).append(found)
            masks = {label: np.load(rival.answer) for label, rival in rivals.items()}
        finally:
            for worker in workers.values():
                worker.close()
            for rival in rivals.values():
                rival.close()
    rows = _rows(blocks, masks, expected)
    table = Table("", *next(iter(rows.values())))
    for label, row in rows.items():
        table.add_row(label, *map(str, row.values()))
    Console(width=130).print(table)
    for label, reason in absent.items():
        print(f"{label} could not be measured: {reason}")
    figures: dict[str, Any] = {"weights": model.name, "threads": usable_cpus(), "rows": rows}
    leave("peers", {**figures, "absent": absent, "blocks": blocks})


def _rows(
    blocks: dict[str, list[list[float]]], masks: dict[str, Any], expected: Any
) -> dict[str, dict[str, object]]:
    """Figures of each, against onnxruntime as it comes, which is what rembg runs."""
    baseline = blocks["onnxruntime as it comes"]
    rows: dict[str, dict[str, object]] = {}
    for label, taken in blocks.items():
        found = stats.ratio(taken, baseline)
        difference = compare(expected, masks[label]) if label in masks else None
        rows[label] = {
            "median ms": round(stats.latency(taken).median, 1),
            "against onnxruntime": round(found.value, 3),
            "95 %": f"{found.low:.3f} to {found.high:.3f}",
            "mask IoU": round(difference.mask_iou, 4) if difference else "judged by bench",
        }
    return rows


if __name__ == "__main__":
    main()
