"""The only door to backend code: names, loading, and opening an artifact by its path."""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from u2export import artifact as artifacts
from u2export.artifact import Artifact, Facts, WeightsFacts
from u2export.backend import Backend, Runner
from u2export.errors import ArtifactError, DependencyError, InputError
from u2export.machine import usable_cpus
from u2export.spec import Device, model_named

GROUP = "u2export.backends"
MAX_THREADS = 1024  # runtimes start every thread they are told to, until the machine stands still


def names() -> list[str]:
    """List the installed backends, importing none of them."""
    return sorted(_entries())


def load(name: str) -> Backend:
    """Import a backend.

    Raises:
        InputError: no backend has that name.
        DependencyError: its entry point cannot be imported.
    """
    entries = _entries()
    if name not in entries:
        raise InputError(f"no backend is called {name!r}: choose one of {', '.join(entries)}")
    try:
        backend = entries[name].load()
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the {name} backend needs {error.name}, which is not installed: "
            f"pip install {error.name}"
        ) from error
    except ImportError as error:
        raise DependencyError(f"the {name} backend cannot be imported: {error}") from error
    if not isinstance(backend, Backend):
        raise InputError(f"the entry point {name!r} in {GROUP} is no u2export Backend")
    return backend


def require(backend: Backend, *, export: bool) -> None:
    """Make sure that the packages for exporting, or for running, are installed.

    Raises:
        DependencyError: one is not; the sentence names the line to type.
    """
    packages = backend.export_packages if export else backend.run_packages
    extra = backend.export_extra if export else backend.run_extra
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        work = "exporting with" if export else "running"
        raise DependencyError(
            f"{work} the {backend.name} backend needs {', '.join(missing)}, not installed "
            f"here: pip install 'u2export[{extra}]'"
        )


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
    ours = artifacts.check_digest(path)
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
    return Artifact(path, backend.name, _foreign_facts(path, model))


def open_runner(
    artifact: Artifact, device: Device = Device.CPU, threads: int | None = None
) -> Runner:
    """Load an artifact into its runtime, on exactly that device.

    Args:
        artifact: from `open_artifact` or a build.
        device: where to compute.
        threads: for computation; by default all that this process may use.

    Raises:
        DependencyError: the runtime or the device is not there.
        ArtifactError: the runtime refuses the file.
        InputError: a number of threads that no machine has.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads must be 1 to {MAX_THREADS}, got {threads}")
    backend = load(artifact.backend)
    require(backend, export=False)
    if device not in backend.devices:
        raise DependencyError(
            f"the {backend.name} backend runs on {', '.join(backend.devices)}, "
            f"not on {device} in this release"
        )
    return backend.open(artifact, device, threads or usable_cpus())


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


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
