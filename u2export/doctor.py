"""What this machine can export and run, and what is missing for the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable

import psutil
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from u2export import machine, registry
from u2export.errors import DependencyError, InputError, U2ExportError
from u2export.onnxfile import IR_VERSIONS, tiny_model
from u2export.spec import DEFAULT_OPSET, OPSETS

_WIDTH = 110
# Distributions whose versions explain what a runtime does.
_RELATED = (
    *("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt-rtx", "cuda-bindings", "numpy", "pillow"),
)


class Machine(BaseModel):
    """The hardware and the system.

    Attributes:
        cpus: that this process may use.
        quota: CPUs' worth of time the container allows; None without a limit.
        features: of the CPU, that decide what low precision is worth.
        memory_gib: of the machine.
        driver: newest CUDA version NVIDIA's driver serves; empty without one.
        no_gpu: why no NVIDIA GPU can be used; empty where one can.
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
        suffixes: of the files it opens; the first is the one it writes.
        precisions: it can export.
        export: why it cannot export, with what to type; empty where it can.
        run: by device, why it cannot run there; empty where it can.
        opsets: of ONNX that its runtime loads, of those we can write; None if it reads no ONNX.
        irs: versions of the ONNX file format that its runtime loads; None if it reads no ONNX.
        takes_ours: it loads the opset and IR we write by default; None if it reads no ONNX.
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


class Report(BaseModel):
    """The whole examination."""

    model_config = ConfigDict(frozen=True)

    u2export: str
    machine: Machine
    versions: dict[str, str]
    backends: list[BackendReport]


def examine(phase: Callable[[str], None] = lambda name: None) -> Report:
    """Look at the machine and every backend."""
    phase("looking at the machine")
    reports = []
    for name in registry.names():
        phase(f"trying {name}")
        reports.append(backend_report(name))
    return Report(
        u2export=importlib.metadata.version("u2export"),
        machine=_machine(),
        versions=versions(),
        backends=reports,
    )


def backend_report(name: str, *, probe: bool = True) -> BackendReport:
    """Look at one backend; `probe` loads small ONNX files into its runtime."""
    try:
        backend = registry.load(name)
    except U2ExportError as error:
        why = str(error)
        return BackendReport(name=name, suffixes=[], precisions=[], export=why, run={"": why})
    missing = registry.missing_packages(backend, export=False)
    pip = registry.pip_line(backend, export=False)
    reason = f"{', '.join(missing)} not installed: {pip}" if missing else ""
    run = {str(d): reason or backend.missing_device(d) for d in backend.devices}
    report = BackendReport(
        name=name,
        suffixes=list(backend.suffixes),
        precisions=[str(precision) for precision in backend.precisions],
        export=_why_no_export(name),
        run=run,
    )
    if not probe or missing or backend.accepts is None:
        return report
    try:
        opsets = [o for o in OPSETS if _loads(backend.accepts, o, IR_VERSIONS[o])]
    except DependencyError:  # here the runtime cannot even be asked
        return report
    newest = max(IR_VERSIONS.values())
    irs = [
        ir
        for ir in range(min(IR_VERSIONS.values()), newest + 4)
        if _loads(backend.accepts, DEFAULT_OPSET, ir)
    ]
    ours = DEFAULT_OPSET in opsets and IR_VERSIONS[DEFAULT_OPSET] in irs
    return report.model_copy(update={"opsets": opsets, "irs": irs, "takes_ours": ours})


def demand(report: Report, names: Iterable[str]) -> None:
    """Make sure that backends can export here, and run on one of their devices.

    Raises:
        InputError: there is no such backend.
        DependencyError: one cannot; the sentence says why.
    """
    found = {backend.name: backend for backend in report.backends}
    for name in names:
        if name not in found:
            raise InputError(f"no backend is called {name!r}: choose one of {', '.join(found)}")
        backend = found[name]
        if backend.export:
            raise DependencyError(f"{name} cannot export here: {backend.export}")
        if all(backend.run.values()):
            why = "; ".join(dict.fromkeys(backend.run.values()))
            raise DependencyError(f"{name} cannot run here: {why}")


def _why_no_export(name: str) -> str:
    while True:
        try:
            backend = registry.load(name)
            registry.require(backend, export=True)
        except DependencyError as error:
            return str(error)
        if backend.parent is None:
            return ""
        name = backend.parent


def _loads(accepts: Callable[[bytes], object], opset: int, ir: int) -> bool:
    try:
        accepts(tiny_model(opset, ir))
    except DependencyError:
        raise
    except Exception:  # every runtime has exceptions of its own; that it refuses is the answer
        return False
    return True


def _machine() -> Machine:
    cpu, features = machine.cpu_features()
    cuda = machine.cuda()
    return Machine(
        system=platform.platform(),
        python=platform.python_version(),
        cpu=cpu or platform.processor(),
        features=features,
        cpus=machine.usable_cpus(),
        host_cpus=os.cpu_count() or 1,
        quota=machine.quota(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=[
            f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
            for gpu in cuda.gpus
        ],
        driver=cuda.driver,
        no_gpu=cuda.reason,
    )


def versions() -> dict[str, str]:
    """Versions of the installed packages that explain what a runtime does."""
    found = {}
    for name in _RELATED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def listing(backends: list[BackendReport]) -> str:
    """The backends for people, one a row."""
    shown = Table("command", "writes", "precisions", "exports here", "runs here")
    for backend in backends:
        able = [device for device, why in backend.run.items() if not why]
        shown.add_row(
            f"u2export {backend.name}",
            backend.suffixes[0] if backend.suffixes else "",
            ", ".join(backend.precisions),
            "no" if backend.export else "yes",
            ", ".join(able) or "no",
        )
    return _drawn(shown)


def text(report: Report) -> str:
    """The examination for people."""
    here = report.machine
    quota = "no quota" if here.quota is None else f"a quota of {here.quota:g}"
    lines = [
        f"u2export {report.u2export}, Python {here.python}, {here.system}",
        f"CPU: {here.cpu}; {', '.join(here.features) or 'features unknown'}",
        f"     {here.cpus} of {here.host_cpus} CPUs may be used ({quota}), "
        f"{here.memory_gib} GiB of memory",
        f"GPU: {'; '.join(here.gpus) or here.no_gpu}"
        + (f"; driver serves CUDA {here.driver}" if here.driver else ""),
        "Installed: " + ", ".join(f"{name} {v}" for name, v in report.versions.items()),
        "",
        listing(report.backends),
    ]
    for backend in report.backends:
        lines += _remarks(backend)
    return "\n".join(lines)


def _remarks(backend: BackendReport) -> list[str]:
    lines = []
    if backend.export:
        lines.append(f"{backend.name} cannot export: {backend.export}")
    for device, why in backend.run.items():
        if why and not (backend.export and why in backend.export):
            lines.append(f"{backend.name} cannot run on {device}: {why}")
    if backend.opsets is not None and backend.irs is not None:
        ours = f"opset {DEFAULT_OPSET} in IR {IR_VERSIONS[DEFAULT_OPSET]}"
        lines.append(
            f"{backend.name} reads ONNX opset {_range(backend.opsets)} of those we write, IR "
            f"{_range(backend.irs)}; we write {ours}"
            + ("" if backend.takes_ours else ", which it does not take: upgrade it")
        )
    return lines


def _range(numbers: list[int]) -> str:
    if not numbers:
        return "none"
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))


def _drawn(shown: Table) -> str:
    console = Console(width=_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get().rstrip("\n")
