"""Is our OpenVINO runner as fast as OpenVINO's own benchmark_app on the same file?

    python benchmarks/openvino_overhead.py [ARTIFACT.xml] [--blocks 12]

Both in processes of their own, in short blocks that take turns (A B, B A, ...), pinned to float32,
one stream, the same number of threads. Without an artifact the bundled demo weights are exported,
whose arithmetic is that of the real u2netp. Our figure includes what benchmark_app does not do:
taking a NumPy array and giving back one of the caller's own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from author_masks import u2export
from report import leave

from u2export.core import registry
from u2export.core.requests import RunRequest
from u2export.system.hardware import usable_cpus

CALLS, WARM_UP = 30, 5
RESAMPLES = 10_000


def ours(path: Path, threads: int) -> None:
    """Print the median milliseconds of a call; in a process of its own."""
    with registry.open_runner(registry.open_artifact(path), RunRequest(threads=threads)) as runner:
        x = np.random.default_rng(0).normal(size=(1, 3, runner.size, runner.size))
        x = x.astype(np.float32)
        for _ in range(WARM_UP):
            runner(x)
        times = []
        for _ in range(CALLS):
            begun = time.perf_counter()
            runner(x)
            times.append(1000 * (time.perf_counter() - begun))
        assert set(runner.executed().share_of_macs()) == {"fp32 on cpu"}
    print(statistics.median(times))


def run_ours(path: Path, threads: int, folder: Path) -> float:
    """One block of our runner."""
    command = [sys.executable, __file__, str(path), "--worker", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def run_theirs(path: Path, threads: int, folder: Path) -> float:
    """One block of benchmark_app."""
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(path), "-d", "CPU"]
    command += ["-api", "sync", "-hint", "latency", "-infer_precision", "f32", "-ip", "f32"]
    command += ["-niter", str(CALLS), "-json_stats", "-report_type", "no_counters"]
    done = subprocess.run(
        [*command, "-report_folder", str(folder)], check=True, capture_output=True, text=True
    )
    # It takes no thread count beside a hint, so what it chose must be what we were given.
    assert f"INFERENCE_NUM_THREADS: {threads}\n" in done.stdout, done.stdout
    assert "INFERENCE_PRECISION_HINT: <Type: 'float32'>" in done.stdout, done.stdout
    told = json.loads((folder / "benchmark_report.json").read_text())
    return float(told["execution_results"]["latency (ms)"])


def main() -> None:
    """Take turns, leave the ratio with its interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        ours(args.artifact, args.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["U2EXPORT_CACHE"] = folder
        path = args.artifact or Path(
            u2export("openvino", "--model", "u2netp-demo", "--out", place)[0]
        )
        threads = usable_cpus()
        found: dict[str, list[float]] = {"ours": [], "benchmark_app": []}
        sides = [("ours", run_ours), ("benchmark_app", run_theirs)]
        for block in range(args.blocks):
            for name, run in sides if block % 2 == 0 else sides[::-1]:
                found[name].append(run(path, threads, place))
            print(block, {name: round(values[-1], 2) for name, values in found.items()}, flush=True)
    ratios = np.array(found["ours"]) / np.array(found["benchmark_app"])
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    figures = {
        "artifact": path.name,
        "threads": threads,
        "calls a block": CALLS,
        "blocks": args.blocks,
        "ours, ms, median of blocks": round(statistics.median(found["ours"]), 2),
        "benchmark_app, ms, median of blocks": round(statistics.median(found["benchmark_app"]), 2),
        "ratio, median of the blocks' ratios": round(float(np.median(ratios)), 4),
        "ratio, 95 % interval": [round(float(low), 4), round(float(high), 4)],
        "blocks, ms": {name: [round(v, 2) for v in values] for name, values in found.items()},
    }
    leave("openvino_overhead", figures)


if __name__ == "__main__":
    main()
