"""Energy counters as the kernel writes them, and a GPU's management library, both acted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from u2export.benchmark import energy
from u2export.benchmark.energy import EnergyMeter, GpuMeter


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two processors, a part of the first, and the board: joules are told in millionths."""
    for name, told in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
    ):
        zone = tmp_path / name
        zone.mkdir()
        (zone / "name").write_text(f"{told}\n")
        (zone / "energy_uj").write_text("5000000\n")
        (zone / "max_energy_range_uj").write_text("9000000\n")
    return tmp_path


def _set(powercap: Path, name: str, joules: float) -> None:
    (powercap / name / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")


def test_energy_is_that_of_all_processors_and_not_of_their_parts(powercap: Path):
    energy = EnergyMeter(powercap=powercap)
    for name, joules in (("intel-rapl:0", 6), ("intel-rapl:1", 7.5)):
        _set(powercap, name, joules)
    _set(powercap, "intel-rapl:0:0", 8)
    _set(powercap, "intel-rapl:2", 8)
    assert energy.available
    assert energy.consumed_joules() == pytest.approx(1 + 2.5)
    assert energy.consumed_joules() == 0


def test_a_counter_that_starts_anew_is_followed(powercap: Path):
    energy = EnergyMeter(powercap=powercap)
    _set(powercap, "intel-rapl:1", 1)  # from 5 to its end at 9, and 1 more
    assert energy.consumed_joules() == pytest.approx(5)


def test_where_nothing_may_be_read_nothing_is_told(powercap: Path, tmp_path: Path):
    assert not EnergyMeter(powercap=tmp_path / "none").available
    for zone in powercap.iterdir():
        (zone / "energy_uj").unlink()
    energy = EnergyMeter(powercap=powercap)
    assert not energy.available
    assert energy.consumed_joules() is None


class FailedError(Exception):
    """What the library raises."""


def _library(joules: list[float]) -> SimpleNamespace:
    """`pynvml` with one GPU that has used 700 MB; it counts no energy where none is given."""
    millijoules = [1000 * value for value in joules]

    def energy(handle: int) -> float:
        if not millijoules:
            raise FailedError
        return millijoules.pop(0)

    return SimpleNamespace(
        NVMLError=FailedError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetName=lambda handle: "one",
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=700_000_000),
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


def test_a_gpus_energy_is_added_and_its_memory_told(powercap: Path):
    gpu = GpuMeter(_library([100, 130]), 0)
    energy = EnergyMeter(gpu, powercap)
    _set(powercap, "intel-rapl:0", 7)
    assert energy.consumed_joules() == pytest.approx(30 + 2)
    assert gpu.used_memory_mb() == 700


def test_a_gpu_that_counts_no_energy_leaves_the_processors(powercap: Path):
    energy = EnergyMeter(GpuMeter(_library([]), 0), powercap)
    _set(powercap, "intel-rapl:0", 7)
    assert energy.consumed_joules() == pytest.approx(2)


def test_a_gpu_without_memory_of_its_own_tells_none():
    library = _library([])

    def failing(handle: int) -> None:
        raise FailedError

    library.nvmlDeviceGetMemoryInfo = failing
    assert GpuMeter(library, 0).used_memory_mb() is None


def test_without_a_library_or_a_gpu_there_is_none(monkeypatch):
    def absent(name: str):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(energy.importlib, "import_module", absent)
    assert GpuMeter.detect() is None
    library = _library([])
    monkeypatch.setattr(energy.importlib, "import_module", lambda name: library)
    assert GpuMeter.detect().used_memory_mb() == 700

    def failing() -> None:
        raise FailedError

    library.nvmlInit = failing
    assert GpuMeter.detect() is None


@pytest.mark.parametrize(
    ("visible", "order", "names", "asked"),
    [
        (None, None, "aa", 0),
        ("1", None, "aa", 1),
        ("1,0", "PCI_BUS_ID", "ab", 1),
        ("1", None, "ab", None),  # CUDA counts the fastest first, the library by the bus
        ("GPU-7f", None, "ab", "GPU-7f"),
        ("", None, "aa", None),
        ("-1", None, "aa", None),
        ("2", None, "aa", None),
    ],
)
def test_the_gpu_that_is_read_is_the_one_that_cuda_takes(monkeypatch, visible, order, names, asked):
    library, read = _library([]), []
    library.nvmlDeviceGetCount = lambda: len(names)
    library.nvmlDeviceGetName = lambda handle: names[handle]
    library.nvmlDeviceGetMemoryInfo = lambda handle: read.append(handle) or SimpleNamespace(used=1)
    monkeypatch.setattr(energy.importlib, "import_module", lambda name: library)
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    gpu = GpuMeter.detect()
    if asked is None:
        assert gpu is None
    else:
        gpu.used_memory_mb()
        assert read == [asked]
