"""Fuzz every reader of foreign bytes for a share of some time, with atheris.

    PYTHONPATH=tests python -m fuzz [--seconds 3600] [READER ...]
    PYTHONPATH=tests python -m fuzz --keep [READER ...]

The first goes on where a killed one stopped. Everything lies in `.fuzz/`: corpora that grow,
findings, logs. The status is 1 where there are findings. The second chooses of the grown corpora
the few small inputs that reach most, and puts them beside the committed ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fuzz.readers import READERS, Reader

PLACE = Path(".fuzz")
TURN_SECONDS = 300.0  # a kill loses at most this much
LEAST_SECONDS = 5.0
# A reader may take 10 s by its own clock; libFuzzer ends the process where one hangs.
LIMITS = ("-timeout=30", "-rss_limit_mb=4096", "-len_control=0", "-print_final_stats=1")
KEPT_FILES, KEPT_BYTES = 12, 6000  # of each corpus, beside its seeds


def _folder(kind: str, name: str) -> Path:
    folder = PLACE.absolute() / kind / name  # readers have another current folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Progress:
    """What a campaign has done so far, by reader; kept on disk after each turn."""

    def __init__(self) -> None:
        """Read it."""
        self._path = PLACE / "progress.json"
        text = self._path.read_text("utf-8") if self._path.is_file() else "{}"
        self.done: dict[str, dict[str, float]] = json.loads(text)

    def of(self, name: str) -> dict[str, float]:
        """Seconds, runs, edges and features of a reader."""
        return self.done.setdefault(name, {"seconds": 0.0, "runs": 0, "edges": 0, "stops": 0})

    def add(self, name: str, **figures: float) -> None:
        """Add a turn."""
        one = self.of(name)
        one["seconds"] += figures["seconds"]
        one["runs"] += figures["runs"]
        one["stops"] += figures["stops"]
        one["edges"] = max(one["edges"], figures["edges"])
        self._path.write_text(json.dumps(self.done, indent=1), "utf-8")

    def clear(self) -> None:
        """Let the next campaign begin anew; corpora and findings stay."""
        self._path.unlink(missing_ok=True)


def fuzz(readers: list[Reader], seconds: float) -> Progress:
    """Give each reader its share of the time, in turns."""
    progress, share = Progress(), seconds / len(readers)
    while waiting := [one for one in readers if _left(progress, one, share) > LEAST_SECONDS]:
        for reader in waiting:
            _take_turn(reader, progress, min(TURN_SECONDS, _left(progress, reader, share)))
    return progress


def _left(progress: Progress, reader: Reader, share: float) -> float:
    return share - progress.of(reader.name)["seconds"]


def _take_turn(reader: Reader, progress: Progress, seconds: float) -> None:
    log, start = _folder("logs", reader.name) / f"{time.time():.0f}.txt", time.monotonic()
    flags = (
        *LIMITS,
        f"-max_len={reader.largest}",
        f"-max_total_time={max(1, int(seconds))}",
        f"-artifact_prefix={_folder('findings', reader.name)}/",
    )
    status = _run_target(reader, log, *flags, *_corpora(reader))
    told = log.read_text("utf-8", "replace")
    progress.add(
        reader.name,
        seconds=time.monotonic() - start,
        runs=_last_number(r"^#(\d+)", told),
        edges=_last_number(r" cov: (\d+)", told),
        stops=int(status != 0),
    )
    print(f"{reader.name}: {progress.of(reader.name)}", flush=True)


def _corpora(reader: Reader) -> list[str]:
    """The corpus that grows, and the committed one."""
    return [str(_folder("corpora", reader.name)), str(reader.corpus[0].parent)]


def _run_target(reader: Reader, log: Path, *words: str) -> int:
    findings = str(_folder("findings", reader.name))
    command = [sys.executable, "-m", "fuzz.target", reader.name, findings, *words]
    with log.open("wb") as file:
        return subprocess.run(command, stdout=file, stderr=file, check=False).returncode


def _last_number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text, re.MULTILINE)
    return int(found[-1]) if found else 0


def findings(reader: Reader) -> list[Path]:
    """The inputs that showed a fault or ended the process."""
    return [path for path in _folder("findings", reader.name).iterdir() if path.suffix != ".txt"]


def keep(reader: Reader) -> None:
    """Add to the committed corpus what reaches more than its seeds, the smallest inputs first."""
    chosen = _folder("merged", reader.name)
    shutil.rmtree(chosen)
    chosen.mkdir()
    shutil.copytree(reader.corpus[0].parent, chosen, dirs_exist_ok=True)
    seeds = {path.name for path in reader.corpus}
    log = _folder("logs", reader.name) / "merge.txt"
    grown = str(_folder("corpora", reader.name))
    _run_target(reader, log, "-merge=1", f"-max_len={reader.largest}", str(chosen), grown)
    new = sorted(
        (path for path in chosen.iterdir() if path.name not in seeds),
        key=lambda path: path.stat().st_size,
    )
    sizes = itertools.accumulate(path.stat().st_size for path in new)
    for path, size in zip(new[:KEPT_FILES], sizes, strict=False):
        if size <= KEPT_BYTES:
            shutil.copy(path, reader.corpus[0].parent / path.name)


def _parse_words() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help="by default all")
    parser.add_argument("--seconds", type=float, default=3600.0, help="all readers together")
    parser.add_argument("--keep", action="store_true", help="add to the committed corpora")
    return parser.parse_args()


def main() -> int:
    """Do what was typed."""
    words = _parse_words()
    if find_spec("atheris") is None:
        sys.exit("fuzzing needs atheris: Linux on x86-64, Python 3.11 to 3.13, the extra fuzz")
    readers = [READERS[name] for name in words.readers or READERS]
    if words.keep:
        for reader in readers:
            keep(reader)
        return 0
    progress = fuzz(readers, words.seconds)
    print(f"{'reader':20} {'runs':>9} {'edges':>6} {'seconds':>7} {'findings':>8}")
    for reader in readers:
        one, found = progress.of(reader.name), len(findings(reader))
        figures = f"{one['runs']:9.0f} {one['edges']:6.0f} {one['seconds']:7.0f} {found:8}"
        print(f"{reader.name:20} {figures}")
    progress.clear()
    return int(any(findings(reader) for reader in readers))


if __name__ == "__main__":
    sys.exit(main())
