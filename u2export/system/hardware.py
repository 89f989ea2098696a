"""What this process may use of the machine: CPUs and their features, NVIDIA GPUs."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

_CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")
# Flags of /proc/cpuinfo that decide what low precision is worth, by the names people use.
CPU_FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "bf16"),
    "FP16": ("avx512_fp16", "asimdhp"),
    "AMX": ("amx_tile",),
    "NEON": ("asimd", "neon"),
    "NEON dot product": ("asimddp",),
}
# With one of these a CPU multiplies 8-bit numbers several times as fast as others.
FAST_INT8 = ("VNNI", "AMX", "NEON dot product")
# Of NVIDIA's driver interface: CUdevice_attribute and CUresult.
_MAJOR, _MINOR = 75, 76
_SUCCESS = 0
_NO_QUOTA = 1e9


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        name: as the driver calls it.
        capability: its compute capability, such as (8, 6).
    """

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class CudaDriver:
    """What NVIDIA's driver tells.

    Attributes:
        gpus: that this process may use.
        driver: the newest CUDA version it serves, such as `12.8`; empty without a driver.
        reason: why there is no GPU, as a phrase; empty where there is one.
    """

    gpus: tuple[Gpu, ...]
    driver: str = ""
    reason: str = ""


def query_cuda(library: str = _CUDA_DRIVER) -> CudaDriver:
    """Ask NVIDIA's driver, by itself, what GPUs there are.

    No runtime is loaded: some crash the process when they are loaded on a machine without a GPU.

    Source:
        CUDA driver interface: cuInit, cuDriverGetVersion, cuDeviceGetCount, cuDeviceGetAttribute.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return CudaDriver((), reason="no NVIDIA driver is installed")
    status = driver.cuInit(0)
    if status != _SUCCESS:
        return CudaDriver((), reason=f"NVIDIA's driver does not start (status {status})")
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    driver.cuDeviceGetCount(ctypes.byref(number))
    if number.value == 0:
        return CudaDriver((), version, "NVIDIA's driver finds no GPU")
    return CudaDriver(tuple(_query_gpu(driver, index) for index in range(number.value)), version)


def _query_gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value))


def cpu_features(cpuinfo: Path = CPUINFO) -> tuple[str, list[str]]:
    """Read the CPU's name and those of `CPU_FEATURES` it has; empty where the system hides it."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return "", []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    names = [name for name, any_of in CPU_FEATURES.items() if flags.intersection(any_of)]
    return facts.get("model name", ""), names


def slow_int8_reason(cpuinfo: Path = CPUINFO) -> str:
    """Say why int8 is less fast on this CPU than on others, as a phrase; or nothing."""
    _, features = cpu_features(cpuinfo)
    if not features or any(name in features for name in FAST_INT8):
        return ""
    return f"this CPU has none of {', '.join(FAST_INT8)}"


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """CPUs' worth of time the container's control group allows, or None without a limit."""
    cpus = _read_quota(cgroup)
    return cpus if cpus < _NO_QUOTA else None


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Count the CPUs this process may use: affinity and the container's quota, at least 1.

    Thread pools sized from the host instead run up to 45 times slower inside a small container.
    """
    if sys.platform == "win32":
        import psutil

        allowed = len(psutil.Process().cpu_affinity())
    elif hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(_read_quota(cgroup))))


def _read_quota(cgroup: Path) -> float:
    """CPUs' worth of time the control group allows, or infinity; version 2, then version 1."""
    for read in (_read_quota_v2, _read_quota_v1):
        try:
            return read(cgroup)
        except (OSError, ValueError, ArithmeticError):
            continue
    return _NO_QUOTA


def _read_quota_v2(cgroup: Path) -> float:
    quota, period = (cgroup / "cpu.max").read_text().split()
    return _NO_QUOTA if quota == "max" else int(quota) / int(period)


def _read_quota_v1(cgroup: Path) -> float:
    quota = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
    period = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
    return quota / period if quota > 0 else _NO_QUOTA


def describe_machine() -> dict[str, str]:
    """Facts of this machine for a report: system, processor, features, usable CPUs, GPUs."""
    cpu, features = cpu_features()
    facts = {
        "system": platform.platform(),
        "processor": cpu or platform.processor(),
        "features": ", ".join(features),
        "usable CPUs": str(usable_cpus()),
        "python": platform.python_version(),
    }
    names = [gpu.name for gpu in query_cuda().gpus]
    return facts | ({"GPUs": ", ".join(names)} if names else {})
