"""What onnxruntime's settings cost in memory, and what they save in time.

    python benchmarks/runner_memory.py FILE.onnx...

Each setting runs in a process of its own: resident memory above that of the loaded session after
the first, second and last call, and the median time of a call. The settings take turns, three
times over.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from report import leave

SETTINGS = {
    "as it comes": "",
    "no memory pattern": "o.enable_mem_pattern = False",
    "no arena": "o.enable_cpu_mem_arena = False",
    "neither": "o.enable_mem_pattern = False; o.enable_cpu_mem_arena = False",
    "no memory pattern, two calls of one thread": (
        "o.enable_mem_pattern = False; o.intra_op_num_threads = 1; at_once = 2"
    ),
}
TURNS = 3
CHILD = """
import json, sys, time, psutil, numpy as np, onnxruntime as ort
from concurrent.futures import ThreadPoolExecutor
at_once = 1
o = ort.SessionOptions()
o.intra_op_num_threads, o.inter_op_num_threads, o.log_severity_level = int(sys.argv[3]), 1, 3
exec(sys.argv[2])
mb = lambda: psutil.Process().memory_info().rss / 1e6
s = ort.InferenceSession(sys.argv[1], o, providers=["CPUExecutionProvider"])
x = np.random.default_rng(0).random((1, 3, 320, 320), np.float32)
begin, memory, times = mb(), [], []
with ThreadPoolExecutor(at_once) as pool:
    for _ in range(12):
        start = time.perf_counter()
        list(pool.map(lambda _: s.run(None, {s.get_inputs()[0].name: x}), range(at_once)))
        times.append(1e3 * (time.perf_counter() - start) / at_once)
        memory.append(round(mb() - begin))
print(json.dumps([memory[0], memory[1], memory[-1], sorted(times[2:])[5]]))
"""


def main() -> None:
    """Measure, leave the figures."""
    from u2export.system.hardware import usable_cpus

    found: dict[str, dict[str, object]] = {}
    for path in map(Path, sys.argv[1:]):
        taken: dict[str, list[list[float]]] = {name: [] for name in SETTINGS}
        for _ in range(TURNS):
            for name, setting in SETTINGS.items():
                words = [sys.executable, "-c", CHILD, str(path), setting, str(usable_cpus())]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                taken[name].append(json.loads(done.stdout))
        found[path.name] = {
            name: {
                "MB after calls 1, 2, 12": [max(run[i] for run in runs) for i in range(3)],
                "median ms a picture": round(statistics.median(run[3] for run in runs), 1),
            }
            for name, runs in taken.items()
        }
    leave("runner_memory", found)


if __name__ == "__main__":
    main()
