"""Are the benchmark's verdicts true? A/A, A/B with a known slowdown, and a machine under load.

    python benchmarks/repeatability.py [--trials 100] [--rounds 80] [--only trials]

Trials: three workers of one file take turns, the third sleeping for 5 % of each call's time; a
trial is judged as `u2export bench` does, and ends as early, or after so many rounds. A/A must say
that there is no difference in 95 of 100, A/B must say `slower` in 95 of 100.

Load: the same two files are measured by `u2export bench` twice, while another process keeps one
core busy in bursts of random length; the two ratios must be within 3 % of each other.

Overhead: what the harness adds to a bare loop around the runner in a process of its own, and its
memory figure against /usr/bin/time's.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from threading import Event, Thread

import numpy as np
from report import leave
from rich.progress import track

from u2export.benchmark import stats
from u2export.benchmark.measure import measure_artifacts
from u2export.benchmark.plan import BenchmarkPlan, write_synthetic_images
from u2export.benchmark.rounds import BLOCK_SECONDS, MIN_ROUNDS, MIN_SAMPLES, NARROW_HALF_WIDTH
from u2export.benchmark.worker import WorkerSpec
from u2export.benchmark.worker_process import WorkerProcess
from u2export.core import registry
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.export.build import build_artifact
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.network import weights

DEMO = MODELS["u2netp-demo"]
SIZE = 128  # pixels: small, so that a hundred trials take minutes
SLOWER = 0.05
ASKED = 0.95  # of the trials must say what is so
PAIRS = 16  # of a worker and a runner: two processes of one file differ by 1 to 2 %
OVERHEAD_ROUNDS = 8  # of each pair
APART = 0.03  # two ratios under load, at most
RESTARTED = 5  # trials after which the workers are new ones
BUSY = "while True: pass"
BARE = """
import sys, time
from pathlib import Path
import numpy as np
from u2export.core import registry
warm, x = (one[None] for one in np.load(sys.argv[2])[:2])
runner = registry.open_runner(registry.open_artifact(Path(sys.argv[1])))
for _ in sys.stdin:
    runner(warm)
    begun = time.perf_counter()
    runner(x)
    print(1e3 * (time.perf_counter() - begun), flush=True)
"""
SEED = 5


def assigned(path: Path, pictures: tuple[Path, ...]) -> WorkerSpec:
    """What a worker is told; the pictures as the network takes them lie beside the file."""
    artifact, inputs = registry.open_artifact(path), path.with_suffix(".npy")
    spec = artifact.facts.picture
    np.save(inputs, np.concatenate([preprocess(open_image(one), spec) for one in pictures]))
    return WorkerSpec(artifact=path, backend=artifact.backend, inputs=inputs)


def trials(path: Path, pictures: tuple[Path, ...], count: int, most: int) -> dict[str, object]:
    """Verdicts of A/A and A/B, by how often each was given; each is judged as by `bench`."""
    first = assigned(path, pictures)
    delayed = first.model_copy(update={"delay": SLOWER})
    same, slower = Trials("no difference"), Trials("slower")
    order = random.Random(0)
    for trial in track(range(count), "trials"):
        if trial % RESTARTED == 0:  # two processes of one file are never quite the same
            crew = hired(first, first, delayed)
        taken: list[list[list[float]]] = [[], [], []]
        waited: list[list[float]] = [[], [], []]
        while len(taken[0]) < most:
            for place in order.sample(range(3), 3):
                found = crew[place].call(
                    "measure_block", seconds=BLOCK_SECONDS, min_samples=MIN_SAMPLES
                )
                taken[place].append(found["samples"])
                waited[place].append(found["waiting_share"])
            calm = stats.undisturbed_rounds(waited)
            kept = [[row[place] for place in calm] for row in taken]
            pairs = [stats.latency_ratio(kept[place], kept[0]) for place in (1, 2)]
            narrow = max(pair.half_width for pair in pairs) <= NARROW_HALF_WIDTH
            if narrow and len(calm) >= MIN_ROUNDS:
                break
        same.add(pairs[0], len(taken[0]))
        slower.add(pairs[1], len(taken[0]))
        if trial % RESTARTED == RESTARTED - 1 or trial == count - 1:
            for worker in crew:
                worker.close()
    return {
        "trials": count,
        "rounds, at most": most,
        "A/A": same.told(),
        "A/B, each call sleeps for 5 % of its time": slower.told(),
    }


class Trials:
    """What was found in each trial, and whether it was what is so."""

    def __init__(self, so: str) -> None:
        """Name the verdict that is true."""
        self._so = so
        self._found: list[stats.Interval] = []
        self._rounds: list[int] = []

    def add(self, found: stats.Interval, rounds: int) -> None:
        """Note a trial."""
        self._found.append(found)
        self._rounds.append(rounds)

    def told(self) -> dict[str, object]:
        """The verdicts by how often each was given, and every trial's figures."""
        verdicts = [stats.verdict(one) for one in self._found]
        right = verdicts.count(self._so) / len(verdicts)
        return {
            "verdicts": {name: verdicts.count(name) for name in sorted(set(verdicts))},
            "reached": right >= ASKED,
            "median ratio": round(float(np.median([one.value for one in self._found])), 4),
            "half width, median": round(float(np.median([f.half_width for f in self._found])), 4),
            "rounds, median": float(np.median(self._rounds)),
            "ratios": [round(one.value, 4) for one in self._found],
        }


def hired(*wanted: WorkerSpec) -> list[WorkerProcess]:
    """Workers that have loaded."""
    crew = [WorkerProcess(one) for one in wanted]
    for worker in crew:
        worker.open()
    return crew


def load(stop: Event) -> None:
    """Keep one core busy in bursts."""
    draw = random.Random(SEED)
    while not stop.is_set():
        with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
            stop.wait(draw.uniform(0.5, 4))
            process.kill()
        stop.wait(draw.uniform(0.5, 4))


def under_load(paths: tuple[Path, ...], seconds: float) -> dict[str, object]:
    """The ratio of two files, measured twice while another process comes and goes."""
    stop = Event()
    thread = Thread(target=load, args=(stop,))
    thread.start()
    try:
        plan = BenchmarkPlan(paths, seconds=seconds)
        reports = [measure_artifacts(plan)[0] for _ in range(2)]
    finally:
        stop.set()
        thread.join()
    ratios = [report.ratios[0] for report in reports]
    found = [round(ratio.ratio, 4) for ratio in ratios]
    return {
        "files": [path.name for path in paths],
        "ratios": found,
        "intervals": [[round(r.low, 4), round(r.high, 4)] for r in ratios],
        "apart": round(abs(found[0] / found[1] - 1), 4),
        "reached": abs(found[0] / found[1] - 1) <= APART,
    }


def overhead(path: Path, pictures: tuple[Path, ...]) -> dict[str, object]:
    """The harness's call by a bare call of the runner, in turns; and its memory figure."""
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    wanted = assigned(path, pictures)
    words = [sys.executable, "-c", BARE, str(path), str(wanted.inputs)]
    for _ in track(range(PAIRS), "overhead"):
        ours.append([])
        bare.append([])
        with (
            WorkerProcess(wanted) as worker,
            subprocess.Popen(words, stdin=PIPE, stdout=PIPE, text=True) as loop,
        ):
            worker.open()
            assert loop.stdin
            assert loop.stdout
            for turn in range(OVERHEAD_ROUNDS):
                for party in ("ours", "bare")[:: 1 if turn % 2 else -1]:
                    if party == "ours":
                        ours[-1] += worker.call("measure_block", seconds=0.0, min_samples=1)[
                            "samples"
                        ]
                        continue
                    print(flush=True, file=loop.stdin)
                    bare[-1].append(float(loop.stdout.readline()))
    ratio = stats.latency_ratio(ours, bare)
    code = "from u2export.benchmark import worker; worker.main()"
    orders = [
        {"command": "open", "arguments": wanted.model_dump(mode="json")},
        {"command": "measure_block", "arguments": {"seconds": 1, "min_samples": 3}},
        {"command": "measure_memory"},
    ]
    done = subprocess.run(
        ["/usr/bin/time", "-f", "%M", sys.executable, "-c", code],
        input="\n".join(map(json.dumps, orders)),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
    theirs = int(re.findall(r"^\d+$", done.stderr, re.MULTILINE)[-1]) * 1024 / 1e6
    return {
        "harness by bare loop": [round(v, 4) for v in (ratio.value, ratio.low, ratio.high)],
        "pairs": PAIRS,
        "rounds of a pair": OVERHEAD_ROUNDS,
        "peak memory, ours and /usr/bin/time's, MB": [round(told, 1), round(theirs, 1)],
    }


def main() -> None:
    """Measure, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=80, help="of a trial, at most")
    parser.add_argument("--seconds", type=float, default=150.0, help="of each run under load")
    parser.add_argument("--only", choices=("overhead", "trials", "under load"))
    args = parser.parse_args()
    source = weights.find(DEMO)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = build_artifact("openvino", ExportSpec(DEMO, SIZE), source, folder)
        whole = [
            build_artifact(backend, ExportSpec(DEMO, 320), source, folder)
            for backend in ("onnx", "openvino")
        ]
        pictures = write_synthetic_images(folder)
        parts: dict[str, Callable[[], dict[str, object]]] = {
            "overhead": lambda: overhead(whole[0].path, pictures),
            "trials": lambda: trials(small.path, pictures, args.trials, args.rounds),
            "under load": lambda: under_load(tuple(one.path for one in whole), args.seconds),
        }
        wanted = [args.only] if args.only else list(parts)
        figures: dict[str, object] = {name: parts[name]() for name in wanted}
    leave("-".join(["repeatability", *(args.only or "").split()]), figures)


if __name__ == "__main__":
    main()
