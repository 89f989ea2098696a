"""Our files beside what people run today: one input, in turns.

    python benchmarks/peers.py [--weights u2netp.safetensors] [--rounds 12]

Ours are measured by the workers of `u2export bench`. Each peer runs in a process of its own; rembg,
ncnn and MNN in environments of their own that are installed for this. All answer the same orders,
and what a peer computes is compared with PyTorch's saliency. One that cannot be installed here is
named with the reason. OpenVINO's benchmark_app brings its own loop: it is started once a round.
onnxruntime, rembg and OpenVINO "as it comes" choose their threads themselves; the others are given
as many as this process may use.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from environments import REMBG, install
from report import leave
from rich.console import Console
from rich.progress import track
from rich.table import Table

from u2export.benchmark import stats
from u2export.benchmark.plan import write_synthetic_images
from u2export.benchmark.worker import SETTLE_SECONDS, WorkerSpec
from u2export.benchmark.worker_process import WorkerProcess
from u2export.compare.metrics import compare_maps
from u2export.core import registry
from u2export.core.enums import Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.export.build import build_artifact
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.network import weights
from u2export.onnx_graph.trace import INPUT_NAME, SALIENCY_NAME
from u2export.system.hardware import usable_cpus

BLOCK_SECONDS, LEAST = 0.5, 3
APP = "OpenVINO's benchmark_app, float32"
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
    settled = time.perf_counter() + order["settle"]
    call(x)
    while time.perf_counter() < settled:
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
# Converted from our ONNX file by the converter that comes with each; float32 throughout.
NCNN = """
import subprocess
from pathlib import Path
import ncnn
converter = next(Path(ncnn.__file__).parents[1].glob("pnnx/pnnx"))
shape = "[" + ",".join(map(str, x.shape)) + "]"
words = [converter, "network.onnx", "inputshape=" + shape, "fp16=0"]
Path("network.onnx").write_bytes(Path(model).read_bytes())
subprocess.run(words, check=True, stdout=sys.stderr)
net = ncnn.Net()
net.opt.num_threads = threads
for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
    setattr(net.opt, "use_" + half, False)
net.load_param("network.ncnn.param")
net.load_model("network.ncnn.bin")
def call(x):
    with net.create_extractor() as extractor:
        extractor.input(net.input_names()[0], ncnn.Mat(x[0]).clone())
        return np.array(extractor.extract(net.output_names()[0])[1])
"""
MNN = """
import subprocess
from pathlib import Path
import MNN.expr, MNN.nn
words = [Path(sys.executable).with_name("mnnconvert"), "-f", "ONNX", "--modelFile", model]
words += ["--MNNModel", "network.mnn", "--bizCode", "peer"]
subprocess.run(words, check=True, stdout=sys.stderr)
module = MNN.nn.load_module_from_file(
    "network.mnn", [{input!r}], [{output!r}],
    thread_num=threads, precision_mode=MNN.expr.PrecisionMode.High,
)
def call(x):
    given = MNN.expr.const(x, list(x.shape), MNN.expr.NCHW)
    found = module.onForward([MNN.expr.convert(given, MNN.expr.NC4HW4)])[0]
    return np.array(MNN.expr.convert(found, MNN.expr.NCHW).read())
"""


@dataclass(frozen=True)
class Peer:
    """What people run today.

    Attributes:
        name: in the table.
        setup: Python that defines `call`.
        file: suffix of the file of ours that it loads.
        install: what pip installs into an environment of its own; empty for this one.
    """

    name: str
    setup: str
    file: str
    install: tuple[str, ...] = ()


PEERS = (
    Peer("onnxruntime as it comes", ORT, ".onnx"),
    Peer("rembg's session", SESSION, ".onnx", (REMBG,)),
    Peer("OpenVINO as it comes", OPENVINO, ".xml"),
    Peer("PyTorch eager", TORCH.replace("{compiled}", ""), ".safetensors"),
    Peer(
        "PyTorch compiled",
        TORCH.replace("{compiled}", "network = torch.compile(network)"),
        ".safetensors",
    ),
    # its converter's dependencies are a whole PyTorch, which converting from ONNX does not need
    Peer("ncnn, float32", NCNN, ".onnx", ("--no-deps", "numpy", "ncnn", "pnnx")),
    Peer(
        "MNN, float32",
        MNN.replace("{input!r}", repr(INPUT_NAME)).replace("{output!r}", repr(SALIENCY_NAME)),
        ".onnx",
        ("numpy", "MNN"),
    ),
)


class Rival:
    """A peer's process."""

    def __init__(self, peer: Peer, folder: Path, files: dict[str, Path], given: Path) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended before.
        """
        self.answer = folder / f"{peer.name.replace(' ', '-')}.npy"
        home = self.answer.with_suffix("")
        home.mkdir()
        own = peer.install and install(home / "environment", *peer.install)
        python = own or Path(sys.executable)
        words = [files[peer.file], usable_cpus(), given, self.answer]
        code = SERVER.replace("{setup}", peer.setup)
        with (home / "said.log").open("w") as log:
            self._process = subprocess.Popen(
                [python, "-c", code, *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "U2NET_HOME": str(folder)},
                cwd=home,
            )
        assert self._process.stdout
        if self._process.stdout.readline() != "ready\n":
            words = (home / "said.log").read_text().strip().splitlines()
            raise RuntimeError(words[-1][:200] if words else "it said nothing")

    def block(self) -> list[float]:
        """Samples of one turn, ms."""
        assert self._process.stdin
        assert self._process.stdout
        order = json.dumps({"seconds": BLOCK_SECONDS, "least": LEAST, "settle": SETTLE_SECONDS})
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"it ended with status {self._process.wait()}")
        found: list[float] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def measured(worker: WorkerProcess) -> list[float]:
    """Samples of one turn of ours, ms."""
    found: list[float] = worker.call("measure_block", seconds=BLOCK_SECONDS, min_samples=LEAST)[
        "samples"
    ]
    return found


def benchmark_app(path: Path) -> list[float]:
    """What OpenVINO's own tool says is the median of a short run, float32, ms."""
    tool = Path(sys.executable).with_name("benchmark_app")
    words = [tool, "-m", path, "-d", "CPU", "-hint", "latency"]  # takes no threads beside a hint
    words += ["-t", "1", "-infer_precision", "f32"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    if done.returncode or not found:
        raise RuntimeError(
            f"benchmark_app told no median: {done.stdout[-200:]}{done.stderr[-200:]}"
        )
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
            build_artifact(backend, ExportSpec(model, 320, precision), source, folder)
            for backend in ("onnx", "openvino")
            for precision in (Precision.FP32, Precision.FP16)
        ]
        torch_file = build_artifact("torch", ExportSpec(model, 320), source, folder).path
        files = {one.path.suffix: one.path for one in reversed(ours)}
        files = {suffix: path for suffix, path in files.items() if "fp32" in path.name}
        files[".safetensors"] = torch_file
        pictures = write_synthetic_images(folder)
        x = preprocess(open_image(pictures[0]), model.picture)
        np.save(folder / "x.npy", x)
        with registry.open_runner(source) as runner:
            expected = runner(x)[0, 0]
        workers = {
            f"u2export, {one.path.name}": WorkerProcess(
                WorkerSpec(artifact=one.path, backend=one.backend, inputs=folder / "x.npy")
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
            turns: dict[str, Callable[[], list[float]]] = {
                label: partial(measured, worker) for label, worker in workers.items()
            }
            turns |= {label: rival.block for label, rival in rivals.items()}
            turns[APP] = partial(benchmark_app, files[".xml"])
            order = random.Random(0)
            for _ in track(range(args.rounds), "measuring in turns"):
                for label in order.sample(list(turns), len(turns)):  # nobody follows the same
                    try:
                        blocks.setdefault(label, []).append(turns[label]())
                    except RuntimeError as error:
                        absent[label] = str(error)
                        del turns[label], blocks[label]
            masks = {label: np.load(rival.answer) for label, rival in rivals.items()}
            for label, worker in workers.items():
                worker.call("save_saliency", path=str(folder / "ours.npz"))
                masks[label] = np.load(folder / "ours.npz")["0/0"]
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
        found = stats.latency_ratio(taken, baseline)
        difference = compare_maps(expected, masks[label]) if label in masks else None
        rows[label] = {
            "median ms": round(stats.summarize_latency(taken).median, 1),
            "against onnxruntime": round(found.value, 3),
            "95 %": f"{found.low:.3f} to {found.high:.3f}",
            "mask IoU": round(difference.mask_iou, 4) if difference else "not compared",
        }
    return rows


if __name__ == "__main__":
    main()
