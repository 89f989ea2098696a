"""Prints by how many bytes a process grows over two hundred calls of a runner.

The larger of two figures: the memory the process occupies, and what of its heap is in use, since
a leak may first fill what the warm-up left free.

Run in a process of its own: what other tests left behind moves the allocator's limits.

    python grows.py ARTIFACT SIZE
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from pathlib import Path

import fakes
import numpy as np
import psutil
import pytest

from u2export.core import registry
from u2export.core.backend import Runner
from u2export.system import hardware

BLOCK = 40
# Members of glibc's `struct mallinfo2`, in their order.
MALLINFO2 = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")
MALLINFO2 += ("fordblks", "keepcost")


def main(path: Path, size: int) -> None:
    artifact = registry.open_artifact(path)
    artifact = dataclasses.replace(artifact, facts=artifact.facts.model_copy(update={"size": size}))
    x = np.zeros((1, 3, size, size), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        if artifact.backend == "tensorrt" and not hardware.query_cuda().gpus:
            fakes.act(patch, path.parent)
        with registry.open_runner(artifact) as runner:
            lowest = [_lowest(runner, x) for _ in range(7)]
    # The first block warms up. Later ones differ by what the allocator keeps for a while; what is
    # lost for good raises the floor.
    print(max(last - second for second, last in zip(lowest[1], lowest[-1], strict=True)))


def _lowest(runner: Runner, x: np.ndarray) -> tuple[int, int]:
    process, occupied, used = psutil.Process(), [], []
    for _ in range(BLOCK):
        runner(x)
        occupied.append(process.memory_info().rss)
        used.append(_heap())
    return min(occupied), min(used)


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO2)


def _heap() -> int:
    """Bytes in use of glibc's heap and of its mapped blocks."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Mallinfo2
    told = ask()
    return int(told.hblkhd + told.uordblks)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
