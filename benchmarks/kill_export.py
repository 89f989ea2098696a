"""Kill an export at random moments: is there ever an artifact that loads and is not whole?

    python benchmarks/kill_export.py --kills 50

Three exports out of four replace a finished artifact of other weights and the same name. After
each kill whatever lies at the artifact's place is opened, which verifies every byte, and its hash
must be that of one of the two finished exports. `no artifact`: there was none before, either.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import leave

from u2export.core import registry
from u2export.core.enums import Architecture
from u2export.network import checkpoint
from u2export.system.files import file_sha256

NAME = "u2netp-fp32-32.onnx"


def command(weights: Path, out: Path) -> list[str]:
    """The export that is killed."""
    words = ["onnx", "--model", "u2netp", "--size", "32", "--weights", str(weights)]
    return [sys.executable, "-m", "u2export", *words, "--out", str(out)]


def main() -> None:
    """Kill, look, count, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    from safetensors.torch import save_file

    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "exported"
        files = [Path(folder) / f"{seed}.safetensors" for seed in range(2)]
        whole = {}
        for seed, file in enumerate(files):
            save_file(checkpoint.random_state(Architecture.SMALL, seed), file)
            begun = time.perf_counter()
            subprocess.run(command(file, place), check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - begun
            whole[file_sha256(place / NAME)] = seed
        finished = Path(folder) / "finished"
        shutil.copytree(place, finished)
        for kill in range(args.kills):
            shutil.rmtree(place)
            if kill % 4:  # three times out of four over another artifact
                shutil.copytree(finished, place)
            process = subprocess.Popen(command(files[0], place), stdout=subprocess.DEVNULL)
            # half of the kills anywhere, half near the end where files are put in place
            late = rng.random() < 0.5
            time.sleep(rng.uniform(0.93 * seconds if late else 0, 1.01 * seconds))
            process.kill()
            counts["finished before the kill" if process.wait() == 0 else "killed"] += 1
            counts[state(place, whole)] += 1
            print(kill, dict(counts), flush=True)
    leave(
        "kill_export",
        {"kills": args.kills, "seconds an export takes": round(seconds, 1), **counts},
    )
    if counts["loads and is not whole"] or counts["refused"]:
        raise SystemExit(1)


def state(place: Path, whole: dict[str, int]) -> str:
    """What lies at the artifact's place."""
    if not os.path.exists(place / NAME):
        return "no artifact"
    try:
        artifact = registry.open_artifact(place / NAME)
    except Exception as error:  # any refusal is a finding
        print(error)
        return "refused"
    return "whole" if file_sha256(artifact.path) in whole else "loads and is not whole"


if __name__ == "__main__":
    main()
