"""`u2export doctor`: what this machine can export and run, and what is missing for the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable

import psutil
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from u2export.core import registry
from u2export.core.requests import DEFAULT_OPSET, OPSETS
from u2export.errors import DependencyError, InputError, U2ExportError
from u2export.onnx_graph.versions import IR_VERSIONS, tiny_model
from u2export.reports.table import render_tables
from u2export.system import hardware
from u2export.system.progress import PhaseCallback

_TABLE_WIDTH = 110


class MachineReport(BaseModel):
    """The hardware and the system.

    Attributes:
        cpu: its name.
        features: of the CPU, those that matter for low precision.
        cpus: that this process may use.
        host_cpus: of the machine.
        quota: CPU time that the container allows, in CPUs; None without a limit.
        memory_gib: of the machine.
        gpus: NVIDIA GPUs with their compute capabilities.
        driver: newest CUDA version that NVIDIA's driver supports; empty without a driver.
        no_gpu: why no NVIDIA GPU can be used; empty if one can.
    """

    model_config = ConfigDict(frozen=True)

    system: str
    python: str
    cpu: str
    features: list[str]
    cpus: int
    host_cpus: int
    quota: float | None
    memory_gib: float
    gpus: list[str]
    driver: str
    no_gpu: str


class BackendReport(BaseModel):
    """What one backend can do here.

    Attributes:
        suffixes: of the files it opens; it writes the first.
        precisions: that it can export.
        export: why it cannot export, with the command that helps; empty if it can.
        run: by device, why it cannot run there; empty if it can.
        opsets: ONNX opsets that its runtime loads, of those u2export writes; None if it loads no
            ONNX.
        irs: versions of the ONNX file format that its runtime loads; None if it loads no ONNX.
        takes_ours: whether it loads the opset and IR that u2export writes by default; None if it
            loads no ONNX.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    suffixes: list[str]
    precisions: list[str]
    export: str
    run: dict[str, str]
    opsets: list[int] | None = None
    irs: list[int] | None = None
    takes_ours: bool | None = None


class DoctorReport(BaseModel):
    """What this machine can do."""

    model_config = ConfigDict(frozen=True)

    u2export: str
    machine: MachineReport
    versions: dict[str, str]
    backends: list[BackendReport]


def examine_machine(phase: PhaseCallback = lambda name: None) -> DoctorReport:
    """Examine the machine and every backend.

    Args:
        phase: called with the name of each phase.
    """
    phase("looking at the machine")
    names = registry.names()
    backends = []
    for name in names:
        phase(f"trying {name}")
        backends.append(examine_backend(name))
    return DoctorReport(
        u2export=importlib.metadata.version("u2export"),
        machine=_examine_hardware(),
        versions=registry.package_versions(names),
        backends=backends,
    )


def examine_backend(name: str, *, probe: bool = True) -> BackendReport:
    """Examine one backend.

    Args:
        name: of the backend.
        probe: load small ONNX files into its runtime, to find the versions that it takes.
    """
    try:
        backend = registry.load(name)
    except U2ExportError as error:
        reason = str(error)
        return BackendReport(name=name, suffixes=[], precisions=[], export=reason, run={"": reason})
    missing = registry.missing_packages(backend, export=False)
    pip = registry.install_command(backend, export=False)
    reason = f"{', '.join(missing)} not installed: {pip}" if missing else ""
    report = BackendReport(
        name=name,
        suffixes=list(backend.suffixes),
        precisions=[str(precision) for precision in backend.precisions],
        export=_export_problem(name),
        run={
            str(device): reason or backend.unavailable_reason(device) for device in backend.devices
        },
    )
    if not probe or missing or backend.load_onnx is None:
        return report
    return _probe_onnx(report, backend.load_onnx)


def _export_problem(name: str) -> str:
    """Say why a backend or one of its parents cannot export; empty if all can."""
    while True:
        try:
            backend = registry.load(name)
            registry.require_packages(backend, export=True)
        except DependencyError as error:
            return str(error)
        if backend.parent is None:
            return ""
        name = backend.parent


def _probe_onnx(report: BackendReport, load_onnx: Callable[[bytes], object]) -> BackendReport:
    """Add the ONNX versions that a runtime loads."""
    try:
        opsets = [opset for opset in OPSETS if _loads(load_onnx, opset, IR_VERSIONS[opset])]
    except DependencyError:  # the runtime cannot start here, so nothing is known
        return report
    candidates = range(min(IR_VERSIONS.values()), max(IR_VERSIONS.values()) + 4)
    irs = [ir for ir in candidates if _loads(load_onnx, DEFAULT_OPSET, ir)]
    takes_ours = DEFAULT_OPSET in opsets and IR_VERSIONS[DEFAULT_OPSET] in irs
    return report.model_copy(update={"opsets": opsets, "irs": irs, "takes_ours": takes_ours})


def _loads(load_onnx: Callable[[bytes], object], opset: int, ir: int) -> bool:
    try:
        load_onnx(tiny_model(opset, ir))
    except DependencyError:
        raise
    except Exception:  # every runtime refuses a file with exceptions of its own
        return False
    return True


def _examine_hardware() -> MachineReport:
    cpu, features = hardware.cpu_features()
    cuda = hardware.query_cuda()
    return MachineReport(
        system=platform.platform(),
        python=platform.python_version(),
        cpu=cpu or platform.processor(),
        features=features,
        cpus=hardware.usable_cpus(),
        host_cpus=os.cpu_count() or 1,
        quota=hardware.cpu_quota(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=[
            f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
            for gpu in cuda.gpus
        ],
        driver=cuda.driver,
        no_gpu=cuda.reason,
    )


def require_backends(report: DoctorReport, names: Iterable[str]) -> None:
    """Check that backends can export here, and run on one of their devices.

    Raises:
        InputError: there is no such backend.
        DependencyError: one cannot; the message says why.
    """
    backends = {backend.name: backend for backend in report.backends}
    for name in names:
        if name not in backends:
            raise InputError(f"no backend is called {name!r}: choose one of {', '.join(backends)}")
        backend = backends[name]
        if backend.export:
            raise DependencyError(f"{name} cannot export here: {backend.export}")
        if all(backend.run.values()):
            reasons = "; ".join(dict.fromkeys(backend.run.values()))
            raise DependencyError(f"{name} cannot run here: {reasons}")


def format_report(report: DoctorReport) -> str:
    """Format a report for a terminal."""
    machine = report.machine
    quota = "no quota" if machine.quota is None else f"a quota of {machine.quota:g}"
    driver = f"; driver serves CUDA {machine.driver}" if machine.driver else ""
    versions = [f"{name} {version}" for name, version in report.versions.items()]
    lines = [
        f"u2export {report.u2export}, Python {machine.python}, {machine.system}",
        f"CPU: {machine.cpu}; {', '.join(machine.features) or 'features unknown'}",
        f"     {machine.cpus} of {machine.host_cpus} CPUs may be used ({quota}), "
        f"{machine.memory_gib} GiB of memory",
        f"GPU: {'; '.join(machine.gpus) or machine.no_gpu}{driver}",
        f"Installed: {', '.join(versions)}",
        "",
        format_backends(report.backends),
    ]
    for backend in report.backends:
        lines += _format_remarks(backend)
    return "\n".join(lines)


def format_backends(backends: list[BackendReport]) -> str:
    """Format a table of backends for a terminal, one a row."""
    table = Table("command", "writes", "precisions", "exports here", "runs here")
    for backend in backends:
        devices = [device for device, reason in backend.run.items() if not reason]
        table.add_row(
            f"u2export {backend.name}",
            backend.suffixes[0] if backend.suffixes else "",
            ", ".join(backend.precisions),
            "no" if backend.export else "yes",
            ", ".join(devices) or "no",
        )
    return render_tables(table, width=_TABLE_WIDTH)


def _format_remarks(backend: BackendReport) -> list[str]:
    lines = []
    if backend.export:
        lines.append(f"{backend.name} cannot export: {backend.export}")
    for device, reason in backend.run.items():
        if reason and not (backend.export and reason in backend.export):
            lines.append(f"{backend.name} cannot run on {device}: {reason}")
    if backend.opsets is not None and backend.irs is not None:
        ours = f"opset {DEFAULT_OPSET} in IR {IR_VERSIONS[DEFAULT_OPSET]}"
        lines.append(
            f"{backend.name} reads ONNX opset {_format_range(backend.opsets)} of those we write, "
            f"IR {_format_range(backend.irs)}; we write {ours}"
            + ("" if backend.takes_ours else ", which it does not take: upgrade it")
        )
    return lines


def _format_range(numbers: list[int]) -> str:
    if not numbers:
        return "none"
    contiguous = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if contiguous else ", ".join(map(str, numbers))
