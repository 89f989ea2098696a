"""From weights to an artifact: exports the parents first, checks the result, publishes it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

from u2export.core import registry
from u2export.core.artifact import Artifact, converted_facts, manifest_path, read_artifact
from u2export.core.backend import Backend
from u2export.core.enums import Device, Precision
from u2export.core.models import find_model
from u2export.core.requests import ExportSpec
from u2export.errors import ArtifactError, InputError
from u2export.export.publish import publish, workspace
from u2export.network import pins, weights
from u2export.system import hardware
from u2export.system.documents import is_file
from u2export.system.files import file_sha256, write_error
from u2export.system.progress import PhaseCallback, say


def export_model(
    backend_name: str,
    spec: ExportSpec,
    weights_option: str | None,
    out: Path,
    *,
    fallback: bool = False,
    phase: PhaseCallback = lambda name: None,
) -> Artifact:
    """Find the weights and export them, as the command `u2export BACKEND` does.

    Args:
        backend_name: of the exporter.
        spec: the request.
        weights_option: value of `--weights`, or None.
        out: the folder for the artifact.
        fallback: use the bundled demo weights, and say so, where the model's weights are missing.
        phase: called with the name of each phase.

    Returns:
        The published artifact.

    Raises:
        U2ExportError: as `u2export.network.weights.find` and `build_artifact` say.
    """
    backend = registry.load(backend_name)
    _check_options(backend, spec)
    _require_packages(backend)
    phase("finding the weights")
    if fallback:
        source, note = weights.find_default(weights_option)
        if note:
            say(note)
    else:
        source = weights.find(spec.model, weights_option)
    facts = source.facts
    spec = dataclasses.replace(spec, model=find_model(facts.model), variant=facts.weights.variant)
    return build_artifact(backend_name, spec, source, out, phase)


def convert_model(
    backend_name: str,
    path: Path,
    out: Path,
    *,
    model: str | None = None,
    backend_options: tuple[tuple[str, str], ...] = (),
    phase: PhaseCallback = lambda name: None,
) -> Artifact:
    """Convert an existing model file as it is, an artifact or a foreign file.

    Args:
        backend_name: of the exporter, which must convert such files.
        path: the file.
        out: the folder for the artifact.
        model: for a foreign file, the name of its model.
        backend_options: as in `ExportSpec`.
        phase: called with the name of each phase.

    Returns:
        The published artifact. It has the file's name and was compared with the file.

    Raises:
        U2ExportError: as `u2export.core.registry.open_artifact` and `build_artifact` say.
    """
    backend = registry.load(backend_name)
    source = registry.open_artifact(path, model)
    if source.backend != backend.parent:
        raise InputError(
            f"{path} is a file of the {source.backend} backend; {backend.name} converts "
            f"{backend.parent or 'weights'}"
        )
    if source.foreign:
        source = registry.with_runtime_facts(source)
    facts = source.facts
    spec = ExportSpec(
        find_model(facts.model),
        facts.size,
        facts.precision,
        facts.batch,
        all_outputs=facts.outputs > 1,
        backend_options=backend_options,
        name=path.stem,
    )
    return build_artifact(backend_name, spec, source, out, phase)


def build_artifact(
    backend_name: str,
    spec: ExportSpec,
    source: Artifact,
    out: Path,
    phase: PhaseCallback = lambda name: None,
) -> Artifact:
    """Export, compare the result with its source, and publish it with its manifest.

    The backend's parent is exported first, or reused where the same was published before. Where
    this machine cannot run the result, the manifest says so. It then carries the figures of the
    parent.

    Args:
        backend_name: of the exporter.
        spec: the request.
        source: the weights, from `u2export.network.weights.find`, or a file of the backend's
            parent.
        out: the folder for the artifact; made if absent.
        phase: called with the name of each phase.

    Returns:
        The published artifact.

    Raises:
        InputError: the backend cannot do the request, or `out` cannot be written.
        DependencyError: a package for exporting is not installed.
        ArtifactError: the weights are damaged or do not fit the model.
        ExportError: the exporter failed, or its result is not the reference's function, or another
            export of the same name is running, or the disk is full. Nothing was published.
    """
    backend = registry.load(backend_name)
    _check_options(backend, spec)
    _require_packages(backend)
    target = out / f"{spec.stem}{backend.suffixes[0]}"
    try:
        with workspace(target) as folder:
            parent = _provide_parent(backend, spec, source, out, phase)
            phase(f"converting {parent.path.name} to {target.name}")
            facts = backend.export(parent, spec, folder / target.name)
            paths = [folder / target.name, *backend.companion_paths(folder / target.name)]
            files = {path.name: file_sha256(path) for path in paths}
            draft = Artifact(paths[0], backend.name, facts, files)
            draft = dataclasses.replace(draft, checks=_check_draft(draft, source, parent, phase))
            publish(draft, folder, out)
    except OSError as error:
        raise write_error(target, error) from error
    _warn_of_slow_int8(backend, spec, target)
    _remember_weights(source)
    return registry.open_artifact(target)


_OPTION_NAMES = {"profile": "batch MIN:OPT:MAX", "quantization": "calibration"}


def _check_options(backend: Backend, spec: ExportSpec) -> None:
    """Refuse options that a backend does not have.

    Raises:
        InputError: the request has one.
    """
    if spec.precision not in backend.precisions:
        precisions = ", ".join(backend.precisions)
        raise InputError(f"the {backend.name} backend exports {precisions}, not {spec.precision}")
    defaults = ExportSpec(spec.model, spec.model.picture.size)
    for field in ("profile", "batch", "size", "all_outputs", "opset", "quantization"):
        if field not in backend.export_options and getattr(spec, field) != getattr(defaults, field):
            option = _OPTION_NAMES.get(field, field.replace("_", "-"))
            raise InputError(f"the {backend.name} backend has no --{option}: leave it out")
    known = {option.name: option for option in backend.backend_options}
    for name, value in spec.backend_options:
        if name not in known:
            raise InputError(f"the {backend.name} backend has no --{name}: leave it out")
        choices = known[name].choices
        if choices and value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _require_packages(backend: Backend) -> None:
    """Require the packages for exporting with a backend and its parents."""
    registry.require_packages(backend, export=True)
    if backend.parent is not None:
        _require_packages(registry.load(backend.parent))


def _provide_parent(
    backend: Backend, spec: ExportSpec, source: Artifact, out: Path, phase: PhaseCallback
) -> Artifact:
    """Give what the backend converts: the source, or its export, reused or built now."""
    if backend.parent is None or source.backend == backend.parent:
        return source
    parent_backend = registry.load(backend.parent)
    parent_spec = _parent_spec(spec, parent_backend)
    path = out / f"{parent_spec.stem}{parent_backend.suffixes[0]}"
    return _find_reusable(path, parent_spec, source) or build_artifact(
        parent_backend.name, parent_spec, source, out, phase
    )


def _parent_spec(spec: ExportSpec, parent_backend: Backend) -> ExportSpec:
    """Give the part of a request that concerns the parent."""
    known = {option.name for option in parent_backend.backend_options}
    backend_options = tuple((name, value) for name, value in spec.backend_options if name in known)
    return dataclasses.replace(spec, profile=None, backend_options=backend_options)


def _find_reusable(path: Path, spec: ExportSpec, source: Artifact) -> Artifact | None:
    """Read the artifact at a path.

    Returns:
        The artifact; None unless it is complete and a new export would give the same.
    """
    if not is_file(manifest_path(path)) or not is_file(path):
        return None
    try:
        artifact = read_artifact(path)
    except ArtifactError as error:
        say(f"{error}: doing so")
        return None
    facts, new_facts = artifact.facts, converted_facts(source, spec, {})
    same_facts = new_facts == facts.model_copy(
        update={"tools": new_facts.tools, "build": new_facts.build}
    )
    same_version = facts.tools.get("u2export") == importlib.metadata.version("u2export")
    return artifact if same_facts and same_version else None


def _check_draft(
    draft: Artifact, source: Artifact, parent: Artifact, phase: PhaseCallback
) -> dict[str, Any]:
    """Compare a draft with its source.

    Returns:
        The figures for the manifest; where the draft cannot run here, the reason, and the figures
        of the parent.
    """
    backend = registry.load(draft.backend)
    device = backend.devices[0]
    parent_checks = parent.checks if parent is not source else {}
    run_spec = registry.resolve_run_spec(backend)
    reason = backend.unavailable_reason(device) or backend.unsupported_reason(draft, run_spec)
    if reason:
        say(f"{draft.path.name} was built but not run on {device}: {reason}")
        return {"not_executed": reason, "parent": {parent.path.name: dict(parent_checks)}}
    phase(f"comparing {draft.path.name} with {source.path.name}")
    from u2export.export.confirm import check_before_publishing  # torch: for exporting only

    return check_before_publishing(draft, source, parent_checks)


def _warn_of_slow_int8(backend: Backend, spec: ExportSpec, target: Path) -> None:
    reason = hardware.slow_int8_reason() if spec.precision is Precision.INT8 else ""
    if reason and Device.CPU in backend.devices:
        say(f"{target.name} runs here, but {reason}: it is less fast than on one that has")


def _remember_weights(source: Artifact) -> None:
    """Remember where weights lie, and pin their hash where nobody published one."""
    if source.backend == "torch":
        pins.remember_location(source)
        note = pins.pin_weights(source)
        if note:
            say(note)
