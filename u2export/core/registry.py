"""The only door to backend code: names, loading, opening an artifact by its path."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np

from u2export import errors
from u2export.core import plugins
from u2export.core.artifact import Artifact, manifest_path, read_artifact
from u2export.core.backend import Backend, Runner
from u2export.core.digest import check_digest
from u2export.core.execution import check_execution
from u2export.core.facts import Facts, WeightsFacts, model_facts, parse_facts
from u2export.core.models import find_model
from u2export.core.requests import RunRequest, RunSpec
from u2export.errors import ArtifactError, DependencyError, InputError, U2ExportError
from u2export.system import versions
from u2export.system.documents import check_regular, is_file, is_there
from u2export.system.files import file_sha256
from u2export.system.hardware import usable_cpus
from u2export.system.progress import say
from u2export.system.versions import is_importable

names = plugins.names

_AS_FOREIGN = "or name its model, as in --model u2net, to take it as another tool's file"


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
            f"{_providing_command(entries[name], error.name or name)}"
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
        if not any(is_importable(name) for name in package.split(" or "))
    ]


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that these backends run and export with, as they say themselves.

    Args:
        names: of backends; one that cannot be imported is left out.
    """
    packages: list[str] = []
    for name in dict.fromkeys(names):
        try:
            backend = load(name)
        except DependencyError:
            continue
        packages += [*backend.run_packages, *backend.export_packages]
    return versions.package_versions(packages)


def require_packages(backend: Backend, *, export: bool) -> None:
    """Make sure that the packages for exporting, or for running, are installed.

    Raises:
        DependencyError: one is not; the sentence names the line to type.
    """
    missing = missing_packages(backend, export=export)
    if missing:
        work = "exporting with" if export else "running"
        raise DependencyError(
            f"{work} the {backend.name} backend needs {', '.join(missing)}, not installed "
            f"here: {install_command(backend, export=export)}"
        )


def install_command(backend: Backend, *, export: bool) -> str:
    """What to type to install what exporting, or running, needs."""
    extras = dict.fromkeys([backend.run_extra, *([backend.export_extra] if export else [])])
    entry = plugins.entries().get(backend.name)
    if entry and entry.dist and extras.keys() <= _extras_of(entry):
        return errors.pip_command(*extras, package=entry.dist.name)
    return errors.pip_command(*extras)


def _providing_command(entry: EntryPoint, package: str) -> str:
    """What to type for a package: the extra of the backend's own distribution, or its name."""
    extras = _extras_of(entry)
    extra = next((name for name in (package, entry.name) if name in extras), None)
    if extra and entry.dist:
        return errors.pip_command(extra, package=entry.dist.name)
    return f"pip install {package}"


def _extras_of(entry: EntryPoint) -> set[str]:
    """The extras of the distribution that a backend belongs to."""
    metadata = entry.dist.metadata if entry.dist else None
    return set(metadata.get_all("Provides-Extra") or []) if metadata else set()


def open_artifact(path: Path, model: str | None = None) -> Artifact:
    """Verify the artifact at `path` and read what it is.

    Args:
        path: a model file, with its manifest beside it or alone.
        model: for a foreign file: the entry of the model table it was made from.

    Raises:
        InputError: there is no such file, no backend for it, or a foreign file without `model`.
        ArtifactError: it was changed since it was exported; or its manifest leaves out a file that
            belongs to it, or contradicts what the file says inside.
        DependencyError: its backend, or the runtime that must read a lone file, is not installed.
    """
    try:
        check_regular(path)
    except FileNotFoundError as error:
        raise InputError(f"there is no artifact at {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty: export it again")
    if is_there(manifest_path(path)):
        artifact = read_artifact(path)
        _check_companions(artifact)
        _check_embedded(artifact)
        return _checked_model(artifact, model)
    backend = _backend_by_suffix(path)
    require_packages(backend, export=False)
    facts = _embedded_facts(path, backend, changes_allowed=model is not None)
    if facts is not None:
        return _checked_model(Artifact(path, backend.name, facts), model)
    if model is None:
        raise InputError(
            f"{path} says nothing about its preprocessing: name the model it was made from, "
            "as in --model u2net"
        )
    return Artifact(path, backend.name, _foreign_facts(path, model), foreign=True)


def _embedded_facts(path: Path, backend: Backend, *, changes_allowed: bool) -> Facts | None:
    """Read the facts in a model file; None where it is another tool's.

    Args:
        path: the file.
        backend: that reads it.
        changes_allowed: a file of ours that was changed counts as another tool's.

    Raises:
        ArtifactError: it was changed since it was exported, or cannot be read.
    """
    change = ""
    try:
        has_digest = check_digest(path, backend.digest_prefix)
    except ArtifactError as error:
        change, has_digest = str(error), True
    if change and not changes_allowed:
        raise ArtifactError(f"{change}; {_AS_FOREIGN}")
    text = backend.read_facts(path)
    if text is not None and not has_digest:
        change = f"{path} was changed after it was exported: its digest is gone"
        if not changes_allowed:
            raise ArtifactError(f"{change}; {_AS_FOREIGN}")
    if change:
        say(f"{change}; it is taken as another tool's file")
    return None if text is None or change else parse_facts(text, path)


def open_runner(artifact: Artifact, request: RunRequest | None = None) -> Runner:
    """Load an artifact into its runtime, on exactly that device, in exactly that precision.

    Args:
        artifact: from `open_artifact` or a build.
        request: how to run it; by default on the backend's first device, with all threads.

    Raises:
        DependencyError: the runtime or the device is not there.
        ArtifactError: the runtime refuses the file.
        InputError: the backend has no such option.
        ParityError: the runtime does something else than it was asked.
    """
    backend = load(artifact.backend)
    run_spec = resolve_run_spec(backend, request)
    runner = open_runner_unchecked(artifact, run_spec)
    if run_spec.device in backend.check_on_open or run_spec.precision is not None:
        try:
            check_execution(runner.executed(), run_spec, artifact.path.name)
        except U2ExportError:
            runner.close()
            raise
    return runner


def open_runner_unchecked(artifact: Artifact, run_spec: RunSpec) -> Runner:
    """Load an artifact into its runtime without checking what it then runs.

    Raises:
        DependencyError: the runtime or the device is not there.
        ArtifactError: the runtime refuses the file.
    """
    backend = load(artifact.backend)
    require_packages(backend, export=False)
    reason = backend.unavailable_reason(run_spec.device)
    if reason:
        raise DependencyError(f"{artifact.path} cannot run on {run_spec.device} here: {reason}")
    return backend.open_runner(artifact, run_spec)


def resolve_run_spec(backend: Backend, request: RunRequest | None = None) -> RunSpec:
    """Fill in what a request leaves open, and refuse what the backend cannot do.

    Raises:
        DependencyError: the backend never runs on that device.
        InputError: the backend has no such precision or option.
    """
    request = request or RunRequest()
    device = request.device or backend.devices[0]
    if device not in backend.devices:
        raise DependencyError(
            f"the {backend.name} backend runs on {', '.join(backend.devices)}, not on {device}"
        )
    if request.precision not in (None, *backend.run_precisions):
        possible = ", ".join(backend.run_precisions) or "what the file holds"
        raise InputError(
            f"the {backend.name} backend computes in {possible}, not in {request.precision}"
        )
    for name, given in (("streams", request.streams != 1), ("compiled", request.compiled)):
        if given and name not in backend.run_options:
            raise InputError(f"the {backend.name} backend has no option {name}: leave it out")
    return RunSpec(
        device,
        request.threads or usable_cpus(),
        request.precision,
        request.streams,
        request.compiled,
    )


def with_runtime_facts(artifact: Artifact) -> Artifact:
    """Give a foreign file the facts that it shows: batch, outputs and precision.

    Raises:
        DependencyError: its runtime is not there.
        ArtifactError: the runtime refuses it.
    """
    with open_runner(artifact) as runner:
        size = artifact.facts.size
        x = np.zeros((runner.min_batch, 3, size, size), np.float32)
        outputs = len(runner.maps(x))
    return with_stored_precision(artifact).with_facts(batch=runner.batch, outputs=outputs)


def model_files(artifact: Artifact) -> list[Path]:
    """The model file and its companions, such as a file of its weights; no manifest."""
    companions = load(artifact.backend).companion_paths(artifact.path)
    return [artifact.path, *(path for path in companions if is_file(path))]


def _check_companions(artifact: Artifact) -> None:
    """Check that the manifest lists every file that the runtime will read.

    Raises:
        ArtifactError: it leaves one out, which may then hold anything.
        DependencyError: its backend cannot be imported.
    """
    companions = model_files(artifact)[1:]
    folder, listed = artifact.path.parent, artifact.files
    unlisted = [path for path in companions if path.parent != folder or path.name not in listed]
    if unlisted:
        raise ArtifactError(
            f"{unlisted[0]} belongs to {artifact.path.name}, and its manifest does not list it: "
            "export it again"
        )


def _check_embedded(artifact: Artifact) -> None:
    """Check what a model file says inside against its manifest.

    Raises:
        ArtifactError: its digest does not fit, or its facts are not the manifest's.
        DependencyError: its backend cannot be imported.
    """
    backend = load(artifact.backend)
    check_digest(artifact.path, backend.digest_prefix)
    text = backend.read_facts(artifact.path)
    if text is None:
        return
    embedded = parse_facts(text, artifact.path)
    unlike = [
        name
        for name in Facts.model_fields
        if getattr(embedded, name) != getattr(artifact.facts, name)
    ]
    if unlike:
        raise ArtifactError(
            f"{artifact.path} says other facts inside than its manifest does, such as its "
            f"{unlike[0]}: export it again"
        )


def with_stored_precision(artifact: Artifact) -> Artifact:
    """Give a foreign file the precision its weights have, and hold ours to what it says.

    Raises:
        DependencyError: its backend cannot be imported.
        ArtifactError: it is damaged, or its weights are not what it says.
    """
    read_precisions = load(artifact.backend).stored_precisions
    if read_precisions is None:
        return artifact
    stored = read_precisions(artifact.path)
    if artifact.foreign:
        return artifact.with_facts(precision=stored[0])
    if artifact.facts.precision not in stored:
        raise ArtifactError(
            f"{artifact.path} says that it is {artifact.facts.precision}, but its weights are "
            f"{stored[0]}"
        )
    return artifact


def _checked_model(artifact: Artifact, model: str | None) -> Artifact:
    if model is not None and find_model(model).name != artifact.facts.model:
        raise InputError(
            f"{artifact.path} is {artifact.facts.model}, not {model}: leave --model out"
        )
    return artifact


def _foreign_facts(path: Path, model: str) -> Facts:
    weights = WeightsFacts(name=path.name, sha256=file_sha256(path), origin="custom")
    return model_facts(find_model(model), weights)


def _backend_by_suffix(path: Path) -> Backend:
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
