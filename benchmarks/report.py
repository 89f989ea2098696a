"""What every benchmark says of the machine, and how it leaves its results."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path

from u2export.system.hardware import usable_cpus

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("u2export", "torch", "onnx", "onnxruntime", "onnxsim", "openvino", "tensorrt_rtx")
PACKAGES += ("numpy", "pillow")


def machine() -> dict[str, object]:
    """Processor, usable CPUs, memory and package versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {
        "processor": name or platform.processor(),
        "usable cpus": usable_cpus(),
        "features": [flag for flag in wanted if flag in flags],
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def typed(script: str) -> str:
    """The command that was typed, with the names of files and folders and not where they lay."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{script}", *words])


def leave(name: str, figures: dict[str, object]) -> Path:
    """Write figures with the machine's facts to `results/<name>-<date>.json`, and print them."""
    date = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    document = {"benchmark": name, "date": date, "machine": machine(), "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{date}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return path
