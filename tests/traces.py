"""Networks that were traced before: tracing takes 5 to 10 s, and gives the same graph again.

That the same export in two processes gives the same bytes is tested without this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from filelock import FileLock

Trace = Callable[[Any, int, int], onnx.ModelProto]


def once(real: Trace, folder: Path) -> Trace:
    """Trace what no process has traced yet, and leave it in a folder for the others."""

    def traced(network: Any, size: int, opset: int) -> onnx.ModelProto:
        digest = hashlib.sha256()
        for name, values in network.state_dict().items():
            digest.update(name.encode() + values.contiguous().numpy().tobytes())
        name = f"{digest.hexdigest()}-{size}-{opset}-{network.all_outputs}.onnx"
        with FileLock(folder / f"{name}.lock"):
            if not (folder / name).exists():
                onnx.save(real(network, size, opset), folder / f"{name}.part")
                (folder / f"{name}.part").replace(folder / name)  # a killed process leaves no half
        return onnx.load(folder / name)

    return traced
