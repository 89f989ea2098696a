"""How long until a newcomer has a mask: `--help`, `run` from process start to PNG, exports.

    python benchmarks/cold_start.py [--weights FILE]

Medians over several starts, interleaved; peak memory of `run` as the kernel saw it. A bare
onnxruntime script that imports, loads and infers once is the floor. OpenVINO starts with its
compiled model in the cache, as every start but the first does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environments import as_installed
from report import leave

from u2export.images.synthetic import draw_image

STARTS = 9
FLOOR = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"input": np.zeros((1, 3, 320, 320), np.float32)})
"""


def timed(command: list[str], folder: str) -> tuple[float, float]:
    """Run a command; give its seconds and its peak resident memory in MB."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=as_installed())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - begun, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Start everything several times in turn, leave the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    args = parser.parse_args()
    chosen = ["--model", "u2netp-demo"]
    if args.weights:
        chosen = ["--model", "u2netp", "--weights", os.path.abspath(args.weights)]
    program = [sys.executable, "-m", "u2export"]
    with tempfile.TemporaryDirectory() as folder:
        draw_image(1_000_005, (800, 600)).picture.save(f"{folder}/picture.jpg", quality=92)
        exports = [timed([*program, "onnx", *chosen], folder) for _ in range(3)]
        half = [timed([*program, "onnx", "--fp16", *chosen], folder) for _ in range(3)]
        converted = [timed([*program, "openvino", *chosen], folder) for _ in range(3)]
        artifact = str(next(Path(folder).glob("exported/*fp32.onnx")))
        other = artifact.replace(".onnx", ".xml")
        cpus = str(len(os.sched_getaffinity(0)))
        commands = {
            "u2export --help": [*program, "--help"],
            "u2export run": [*program, "run", artifact, "picture.jpg"],
            "u2export run, OpenVINO": [*program, "run", other, "picture.jpg"],
            "bare onnxruntime": [sys.executable, "-c", FLOOR, artifact, cpus],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(STARTS):
            for name, command in commands.items():
                found[name].append(timed(command, folder))
    figures: dict[str, object] = {"weights": " ".join(chosen[:2])}
    found |= {"u2export onnx": exports, "u2export onnx --fp16": half}
    found["u2export openvino, the ONNX artifact being there"] = converted
    for name, values in found.items():
        figures[name] = {
            "seconds, median": round(statistics.median(s for s, _ in values), 3),
            "seconds, all": [round(s, 3) for s, _ in values],
            "peak MB": round(max(mb for _, mb in values), 1),
        }
    leave("cold_start", figures)


if __name__ == "__main__":
    main()
