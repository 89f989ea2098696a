"""Energy and a GPU's memory, where the machine lets this process read them."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
_MICRO, _MILLI, _MB = 1e-6, 1e-3, 10**6


class Energy:
    """Joules that processors and GPUs have used.

    Of the whole machine: what else runs meanwhile is counted too.

    Source:
        Linux, Documentation/power/powercap: `energy_uj` and `max_energy_range_uj` of each zone;
        NVML: nvmlDeviceGetTotalEnergyConsumption, in mJ since the driver was loaded.
    """

    def __init__(self, gpu: Gpu | None = None, powercap: Path = POWERCAP) -> None:
        """Find what can be read.

        Args:
            gpu: counted too, where there is one.
            powercap: where the kernel tells.
        """
        self._gpu = gpu
        # Intel's and AMD's: a whole processor, and zones that are parts of it or hold it
        zones = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
        self._zones = [zone for zone in zones if _package(zone)]
        self._last = self._read()

    @property
    def known(self) -> bool:
        """Whether there is anything to be read."""
        return bool(self._last)

    def _read(self) -> dict[str, float]:
        """Joules by counter."""
        found = {}
        for zone in self._zones:
            value = _number(zone / "energy_uj")
            if value is not None:
                found[str(zone)] = value * _MICRO
        joules = self._gpu.joules() if self._gpu else None
        if joules is not None:
            found["gpu"] = joules
        return found

    def spent(self) -> float | None:
        """Joules since the last time of asking; None where nothing can be read."""
        now, before = self._read(), self._last
        self._last = now
        if not now or now.keys() != before.keys():
            return None
        total = 0.0
        for counter, joules in now.items():
            passed = joules - before[counter]
            if passed < 0:  # it starts anew at its largest value
                passed += (_number(Path(counter) / "max_energy_range_uj") or 0.0) * _MICRO
            total += passed
        return total


class Gpu:
    """An NVIDIA GPU, as its management library sees it."""

    def __init__(self, library: Any, handle: Any) -> None:
        """Take a library that was started, and its handle of the GPU."""
        self._library = library
        self._handle = handle

    @classmethod
    def found(cls) -> Gpu | None:
        """The GPU that CUDA calls its first.

        None without one, without `nvidia-ml-py`, and where it is not sure which of several it is.
        """
        try:
            library = importlib.import_module("pynvml")
        except ModuleNotFoundError:
            return None
        try:
            library.nvmlInit()
            handle = _first(library)
        except library.NVMLError:
            return None
        return None if handle is None else cls(library, handle)

    def used_mb(self) -> float | None:
        """Memory in use, of everybody's; None for a GPU that has none of its own."""
        try:
            return float(self._library.nvmlDeviceGetMemoryInfo(self._handle).used) / _MB
        except self._library.NVMLError:
            return None

    def joules(self) -> float | None:
        """Since the driver was loaded; None for a GPU that does not count them."""
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * _MILLI
        except self._library.NVMLError:
            return None


def _first(library: Any) -> Any | None:
    """The handle of CUDA's first GPU; None where nothing tells which it is.

    The management library counts GPUs by their place on the bus and knows nothing of
    CUDA_VISIBLE_DEVICES; CUDA counts the fastest first unless CUDA_DEVICE_ORDER says otherwise,
    which comes to the same where all GPUs are alike.

    Source:
        CUDA C++ Programming Guide, environment variables.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return library.nvmlDeviceGetHandleByUUID(first)
    if not first.isdecimal():  # none is visible
        return None
    handles = [
        library.nvmlDeviceGetHandleByIndex(place) for place in range(library.nvmlDeviceGetCount())
    ]
    alike = len({library.nvmlDeviceGetName(one) for one in handles}) == 1
    known = alike or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return handles[int(first)] if known and int(first) < len(handles) else None


def _package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _number(path: Path) -> float | None:
    """A number in a file; None where it may not be read, as is usual for energy."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
