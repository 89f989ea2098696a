"""The only door to backend code: names, loading, and opening an artifact by its path."""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np

from u2export import artifact as artifacts
from u2export import plugins
from u2export.artifact import Artifact, Facts, WeightsFacts
from u2export.backend import Backend, Runner
from u2export.errors import ArtifactError, DependencyError, InputError, U2ExportError
from u2export.executed import check
from u2export.machine import usable_cpus
from u2export.spec import MAX_THREADS, Device, Precision, RunSpec, model_named

names = plugins.names


def load(name: str) -> Backend:
    """Import a backend.

    Raises:
        InputError: no backend has that name.
        DependencyError: its entry point cannot be imported, or is no backend.
    """
    entries = plugins.entries()
    if name not in entries:
        raise InputError(f"no backend is called {name!r}: choose one of {', '.join(entries)}")
    try:
        backend = entries[name].load()
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the {name} backend needs {error.name}, which is not installed: "
            f"pip install {_what_brings(entries[name], error.name or name)}"
        ) from error
    except Exception as error:  # whatever a plugin raises, the others go on
        raise DependencyError(
            f"the {name} backend cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(backend, Backend):
        raise DependencyError(f"the entry point {name!r} in {plugins.GROUP} is no u2export Backend")
    return backend


def missing_packages(backend: Backend, *, export: bool) -> list[str]:
    """List the packages that exporting, or running, needs and that are not installed."""
    packages = backend.export_packages if export else backend.run_packages
    return [
        package
        for package in packages
        if not any(_importable(name) for name in package.split(" or "))
    ]


def require(backend: Backend, *, export: bool) -> None:
    """Make sure that the packages for exporting, or for running, are installed.

    Raises:
        DependencyError: one is not; the sentence names the line to type.
    """
    missing = missing_packages(backend, export=export)
    if missing:
        work = "exporting with" if export else "running"
        raise DependencyError(
            f"{work} the {backend.name} backend needs {', '.join(missing)}, not installed "
            f"here: {pip_line(backend, export=export)}"
        )


def pip_line(backend: Backend, *, export: bool) -> str:
    """What to type to install what exporting, or running, needs."""
    extras = dict.fromkeys([backend.run_extra, *([backend.export_extra] if export else [])])
    return f"pip install 'u2export[{','.join(extras)}]'"


def _what_brings(entry: EntryPoint, package: str) -> str:
    """The extra of the backend's own distribution that brings a package, or the package."""
    metadata = entry.dist.metadata if entry.dist else None
    extras = metadata.get_all("Provides-Extra") or [] if metadata else []
    extra = next((name for name in (package, entry.name) if name in extras), None)
    return f"'{entry.dist.name}[{extra}]'" if extra and entry.dist else package


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def open_artifact(path: Path, model: str | None = None) -> Artifact:
    """Verify the artifact at `path` and read what it is.

    Args:
        path: a model file, with its manifest beside it or alone.
        model: for a foreign file: the entry of the model table it was made from.

    Raises:
        InputError: there is no such file, no backend for it, or a foreign file without `model`.
        ArtifactError: it was changed since it was exported.
        DependencyError: the runtime that must read a lone file is not installed.
    """
    if not path.is_file():
        raise InputError(f"there is no artifact at {path}")
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty: export it again")
    if artifacts.manifest_path(path).exists():
        found = artifacts.read(path)
        return _same_model(found, model)
    backend = _by_suffix(path)
    require(backend, export=False)
    ours = artifacts.check_digest(path, backend.digest_mark)
    text = backend.read_facts(path)
    if text is not None:
        if not ours:
            raise ArtifactError(f"{path} was changed after it was exported: its digest is gone")
        facts = artifacts.parse_facts(text, path)
        return _same_model(Artifact(path, backend.name, facts), model)
    if model is None:
        raise InputError(
            f"{path} says nothing about its preprocessing: name the model it was made from, "
            "as in --model u2net"
        )
    return Artifact(path, backend.name, _foreign_facts(path, model), foreign=True)


def open_runner(
    artifact: Artifact,
    device: Device | None = None,
    threads: int | None = None,
    *,
    precision: Precision | None = None,
    streams: int = 1,
    compiled: bool = False,
) -> Runner:
    """Load an artifact into its runtime, on exactly that device, in exactly that precision.

    Args:
        artifact: from `open_artifact` or a build.
        device: where to compute; by default the backend's first.
        threads: for computation; by default all that this process may use.
        precision: of the arithmetic; by default what the artifact says.
        streams: how many calls may be under way at once; they share the threads.
        compiled: let PyTorch compile the network.

    Raises:
        DependencyError: the runtime or the device is not there.
        ArtifactError: the runtime refuses the file.
        InputError: the backend has no such option, or no machine has so many threads.
        ParityError: the runtime does something else than it was asked.
    """
    backend = load(artifact.backend)
    asked = run_spec(
        backend, device, threads, precision=precision, streams=streams, compiled=compiled
    )
    runner = open_unverified(artifact, asked)
    if asked.device in backend.proof_at_open or precision is not None:
        try:
            check(runner.executed(), asked, artifact.path.name)
        except U2ExportError:
            runner.close()
            raise
    return runner


def open_unverified(artifact: Artifact, asked: RunSpec) -> Runner:
    """Load an artifact into its runtime without checking what it then runs.

    Raises:
        DependencyError: the runtime or the device is not there.
        ArtifactError: the runtime refuses the file.
    """
    backend = load(artifact.backend)
    require(backend, export=False)
    reason = backend.missing_device(asked.device)
    if reason:
        raise DependencyError(f"{artifact.path} cannot run on {asked.device} here: {reason}")
    return backend.open(artifact, asked)


def run_spec(
    backend: Backend,
    device: Device | None = None,
    threads: int | None = None,
    *,
    precision: Precision | None = None,
    streams: int = 1,
    compiled: bool = False,
) -> RunSpec:
    """Make a request of what was asked, refusing what the backend cannot do.

    Raises:
        DependencyError: it never runs on that device.
        InputError: it has no such precision or option, or no machine has so many threads.
    """
    for name, count in (("threads", threads), ("streams", streams)):
        if count is not None and not 1 <= count <= MAX_THREADS:
            raise InputError(f"{name} must be 1 to {MAX_THREADS}, got {count}")
    device = device or backend.devices[0]
    if device not in backend.devices:
        raise DependencyError(
            f"the {backend.name} backend runs on {', '.join(backend.devices)}, not on {device}"
        )
    if precision is not None and precision not in backend.run_precisions:
        able = ", ".join(backend.run_precisions) or "what the file holds"
        raise InputError(f"the {backend.name} backend computes in {able}, not in {precision}")
    for name, given in (("streams", streams != 1), ("compiled", compiled)):
        if given and name not in backend.run_options:
            raise InputError(f"the {backend.name} backend has no option {name}: leave it out")
    return RunSpec(device, threads or usable_cpus(), precision, streams, compiled)


def surveyed(artifact: Artifact) -> Artifact:
    """Give a foreign file the facts that it shows: batch, outputs and precision.

    Raises:
        DependencyError: its runtime is not there.
        ArtifactError: the runtime refuses it.
    """
    with open_runner(artifact) as runner:
        size = artifact.facts.size
        x = np.zeros((runner.fewest, 3, size, size), np.float32)
        outputs = len(runner.maps(x))
    return with_precision(artifact).with_facts(batch=runner.batch, outputs=outputs)


def model_files(artifact: Artifact) -> list[Path]:
    """The model file and what belongs to it, such as a file of its weights; no manifest."""
    found = load(artifact.backend).companion_paths(artifact.path)
    return [artifact.path, *(path for path in found if path.is_file())]


def with_precision(artifact: Artifact) -> Artifact:
    """Give a foreign file the precision its values have, where its backend can tell; ours as is.

    Raises:
        DependencyError: its runtime is not there.
        ArtifactError: the runtime refuses it.
    """
    stored = load(artifact.backend).stored
    known = not artifact.foreign or stored is None
    return (
        artifact
        if known or stored is None
        else artifact.with_facts(precision=stored(artifact.path))
    )


def _same_model(found: Artifact, model: str | None) -> Artifact:
    if model is not None and model_named(model).name != found.facts.model:
        raise InputError(f"{found.path} is {found.facts.model}, not {model}: leave --model out")
    return found


def _foreign_facts(path: Path, model: str) -> Facts:
    weights = WeightsFacts(name=path.name, sha256=artifacts.sha256_of(path), origin="custom")
    return artifacts.model_facts(model_named(model), weights)


def _by_suffix(path: Path) -> Backend:
    missing: DependencyError | None = None
    for name in names():
        try:
            backend = load(name)
        except DependencyError as error:  # perhaps another backend opens the file
            missing = missing or error
            continue
        if path.suffix.lower() in backend.suffixes:
            return backend
    if missing:
        raise missing
    raise InputError(f"no installed backend opens files ending in {path.suffix or 'nothing'!r}")
