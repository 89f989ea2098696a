"""Meters of energy and of GPU memory, for machines that allow reading them."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
_MICRO, _MILLI, _MB = 1e-6, 1e-3, 10**6


class EnergyMeter:
    """Measures the joules that processors and GPUs consume.

    The counters cover the complete machine: other processes count too.

    Source:
        Linux, Documentation/power/powercap: `energy_uj` and `max_energy_range_uj` of each zone;
        NVML: nvmlDeviceGetTotalEnergyConsumption, in mJ since the driver was loaded.
    """

    def __init__(self, gpu: GpuMeter | None = None, powercap: Path = POWERCAP) -> None:
        """Find the readable counters.

        Args:
            gpu: GPU whose energy counts too.
            powercap: folder of the kernel's counters.
        """
        self._gpu = gpu
        # Intel and AMD: a zone is a processor package, a part of it, or the complete board.
        zones = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
        self._zones = [zone for zone in zones if _is_package(zone)]
        self._previous = self._read_counters()

    @property
    def available(self) -> bool:
        """Whether there is a readable counter."""
        return bool(self._previous)

    def consumed_joules(self) -> float | None:
        """Return the joules since the previous call; None if nothing can be read."""
        current, previous = self._read_counters(), self._previous
        self._previous = current
        if not current or current.keys() != previous.keys():
            return None
        total = 0.0
        for counter, joules in current.items():
            increase = joules - previous[counter]
            if increase < 0:  # the counter restarts at 0 after its largest value
                increase += (_read_number(Path(counter) / "max_energy_range_uj") or 0.0) * _MICRO
            total += increase
        return total

    def _read_counters(self) -> dict[str, float]:
        """Return the joules of each counter."""
        counters = {}
        for zone in self._zones:
            microjoules = _read_number(zone / "energy_uj")
            if microjoules is not None:
                counters[str(zone)] = microjoules * _MICRO
        gpu_joules = self._gpu.total_joules() if self._gpu else None
        if gpu_joules is not None:
            counters["gpu"] = gpu_joules
        return counters


class GpuMeter:
    """Reads memory and energy of an NVIDIA GPU through NVML."""

    def __init__(self, library: Any, handle: Any) -> None:
        """Remember the GPU.

        Args:
            library: the initialized module `pynvml`.
            handle: NVML's handle of the GPU.
        """
        self._library = library
        self._handle = handle

    @classmethod
    def detect(cls) -> GpuMeter | None:
        """Return a meter of CUDA's first GPU.

        Returns:
            None without a GPU, without `nvidia-ml-py`, and if NVML's number of that GPU is unknown.
        """
        try:
            library = importlib.import_module("pynvml")
        except ModuleNotFoundError:
            return None
        try:
            library.nvmlInit()
            handle = _first_gpu(library)
        except library.NVMLError:
            return None
        return None if handle is None else cls(library, handle)

    def used_memory_mb(self) -> float | None:
        """Return the memory that all processes use; None for a GPU without its own memory."""
        try:
            return float(self._library.nvmlDeviceGetMemoryInfo(self._handle).used) / _MB
        except self._library.NVMLError:
            return None

    def total_joules(self) -> float | None:
        """Return the joules since the driver was loaded; None if the GPU does not count them."""
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * _MILLI
        except self._library.NVMLError:
            return None


def _first_gpu(library: Any) -> Any | None:
    """Return NVML's handle of CUDA's first GPU; None if it is unknown which one that is.

    NVML numbers GPUs by bus address and ignores CUDA_VISIBLE_DEVICES. CUDA numbers the fastest
    first, unless CUDA_DEVICE_ORDER says otherwise. Both agree if all GPUs are of one type.

    Source:
        CUDA C++ Programming Guide, environment variables.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return library.nvmlDeviceGetHandleByUUID(first)
    if not first.isdecimal():  # no GPU is visible
        return None
    count = library.nvmlDeviceGetCount()
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    same_type = len({library.nvmlDeviceGetName(handle) for handle in handles}) == 1
    same_order = same_type or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return handles[int(first)] if same_order and int(first) < len(handles) else None


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _read_number(path: Path) -> float | None:
    """Return the number in a file; None without permission, as is usual for energy."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
