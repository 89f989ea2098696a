"""One process of libFuzzer for one reader.

    PYTHONPATH=tests python -m fuzz.target READER FOLDER [FLAGS AND CORPORA OF LIBFUZZER]

What a reader does wrong goes into FOLDER once for each cause, and the fuzzer goes on. What ends the
process, such as a crash of a library, libFuzzer writes there itself.
"""

from __future__ import annotations

import hashlib
import random
import shlex
import sys
import time
from pathlib import Path

import atheris

_START = time.monotonic()
_TOTAL_TIME = "-max_total_time="
# Parsers in Python. They must not be imported before they are instrumented.
INSTRUMENTED = ["u2export", "zipfile", "json", "safetensors", "PIL"]


def main(name: str, folder: Path, flags: list[str]) -> None:
    """Fuzz a reader until libFuzzer's flags end it."""
    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz.readers import READERS
        from fuzz.watch import Fault

        reader = READERS[name]
        for path in reader.corpus:  # imports what readers import late
            reader.find_fault(path.read_bytes())
    known: set[str] = set()

    def take(content: bytes) -> None:
        fault = reader.find_fault(content)
        if fault and fault.key not in known:
            known.add(fault.key)
            _write_finding(folder, fault, content)

    def mutate(content: bytes, largest: int, seed: int) -> bytes:
        return reader.mutate(content, largest, random.Random(seed), _change_bytes)[:largest]

    def _write_finding(folder: Path, fault: Fault, content: bytes) -> None:
        digest = hashlib.sha256(fault.key.encode()).hexdigest()[:12]
        (folder / f"fault-{digest}").write_bytes(content)
        (folder / f"fault-{digest}.txt").write_text(f"{fault.key}\n{fault.text}\n", "utf-8")

    # libFuzzer gives the first word to a shell where it starts itself anew, as `-merge=1` does
    itself = shlex.join([sys.executable, "-m", "fuzz.target", name, str(folder)])
    atheris.Setup([itself, *map(_less_start, flags)], take, custom_mutator=mutate)
    atheris.Fuzz()


def _less_start(flag: str) -> str:
    """Take from the time that is given what the imports took."""
    if not flag.startswith(_TOTAL_TIME):
        return flag
    left = float(flag.removeprefix(_TOTAL_TIME)) - (time.monotonic() - _START)
    return f"{_TOTAL_TIME}{max(1, int(left))}"


def _change_bytes(content: bytes, largest: int) -> bytes:
    changed: bytes = atheris.Mutate(content, max(largest, len(content), 1))
    return changed


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
