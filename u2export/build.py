"""From weights to an artifact: parents first, checked before it is published, whole or not."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from u2export import artifact as artifacts
from u2export import machine, registry, weights
from u2export.artifact import Artifact
from u2export.backend import Backend, facts_for
from u2export.errors import ArtifactError, ExportError, InputError
from u2export.progress import say
from u2export.spec import MODELS, Device, ExportSpec, Precision, model_named

Phase = Callable[[str], None]


def export(
    backend_name: str,
    spec: ExportSpec,
    given: str | None,
    out: Path,
    *,
    fallback: bool = False,
    phase: Phase = lambda name: None,
) -> Artifact:
    """Find the weights and export them: what the command `u2export BACKEND` does.

    Args:
        backend_name: which exporter.
        spec: what is asked for.
        given: what `--weights` named, or None.
        out: the folder for the artifact.
        fallback: where the model's weights cannot be had, take the bundled demo weights and say so.
        phase: told which part of the work begins.

    Returns:
        The published artifact.

    Raises:
        U2ExportError: as `u2export.weights.find` and `build` say.
    """
    backend = registry.load(backend_name)
    _check(backend, spec)
    _require(backend)
    phase("finding the weights")
    if fallback:
        source, note = weights.find_default(given)
        if note:
            say(note)
    else:
        source = weights.find(spec.model, given)
    facts = source.facts
    spec = dataclasses.replace(spec, model=MODELS[facts.model], variant=facts.weights.variant)
    return build(backend_name, spec, source, out, phase)


def convert(
    backend_name: str,
    path: Path,
    out: Path,
    *,
    model: str | None = None,
    settings: tuple[tuple[str, str], ...] = (),
    phase: Phase = lambda name: None,
) -> Artifact:
    """Convert a model file that is there, ours or a foreign one, as it is.

    Args:
        backend_name: which exporter; it must be one that converts such files.
        path: the file.
        out: the folder for the artifact.
        model: for a file u2export did not make: the model it was made from.
        settings: as in `ExportSpec`.
        phase: told which part of the work begins.

    Returns:
        The published artifact, which bears the file's name and was compared with the file.

    Raises:
        U2ExportError: as `u2export.registry.open_artifact` and `build` say.
    """
    backend = registry.load(backend_name)
    source = registry.open_artifact(path, model)
    if source.backend != backend.parent:
        raise InputError(
            f"{path} is a file of the {source.backend} backend; {backend.name} converts "
            f"{backend.parent or 'weights'}"
        )
    if source.foreign:
        source = registry.surveyed(source)
    facts = source.facts
    spec = ExportSpec(
        model_named(facts.model),
        facts.size,
        facts.precision,
        facts.batch,
        all_outputs=facts.outputs > 1,
        settings=settings,
        name=path.stem,
    )
    return build(backend_name, spec, source, out, phase)


def build(
    backend_name: str,
    spec: ExportSpec,
    source: Artifact,
    out: Path,
    phase: Phase = lambda name: None,
) -> Artifact:
    """Export, confirm the result against its source, and publish it with its manifest.

    What the backend converts is built first, or reused where the same was published before. On a
    machine that cannot run the result, the manifest says so, and carries what was measured of the
    file it was converted from.

    Args:
        backend_name: which exporter.
        spec: what is asked for.
        source: the weights, from `u2export.weights.find`, or a file of the backend's parent.
        out: the folder for the artifact; made if absent.
        phase: told which part of the work begins.

    Returns:
        The published artifact.

    Raises:
        InputError: the backend cannot do what is asked, or `out` cannot be written.
        DependencyError: a package that exporting needs is not installed.
        ArtifactError: the weights are damaged or do not fit.
        ExportError: the exporter failed, its result is not the reference's function, another
            export of the same name is running, or the disk is full; nothing was published.
    """
    backend = registry.load(backend_name)
    _check(backend, spec)
    _require(backend)
    target = out / f"{spec.stem}{backend.suffixes[0]}"
    try:
        with workspace(target) as folder:
            parent = _parent(backend, spec, source, out, phase)
            phase(f"converting {parent.path.name} to {target.name}")
            facts = backend.export(parent, spec, folder / target.name)
            paths = [folder / target.name, *backend.companion_paths(folder / target.name)]
            files = {path.name: artifacts.sha256_of(path) for path in paths}
            draft = Artifact(paths[0], backend.name, facts, files)
            draft = dataclasses.replace(draft, checks=_checks(draft, source, parent, phase))
            publish(draft, folder, out)
    except OSError as error:
        raise unwritable(target, error) from error
    slow = machine.slow_int8() if spec.precision is Precision.INT8 else ""
    if slow and Device.CPU in backend.devices:
        say(f"{target.name} runs here, but {slow}: it is less fast than on one that has")
    if source.backend == "torch":
        weights.remember(source)
        note = weights.pin(source)
        if note:
            say(note)
    return registry.open_artifact(target)


_TOLD = {"profile": "batch MIN:OPT:MAX", "quantization": "calibration"}


def _check(backend: Backend, spec: ExportSpec) -> None:
    if spec.precision not in backend.precisions:
        able = ", ".join(backend.precisions)
        raise InputError(f"the {backend.name} backend exports {able}, not {spec.precision}")
    plain = ExportSpec(spec.model, spec.model.picture.size)
    for option in ("profile", "batch", "size", "all_outputs", "opset", "quantization"):
        if option not in backend.options and getattr(spec, option) != getattr(plain, option):
            told = _TOLD.get(option, option.replace("_", "-"))
            raise InputError(f"the {backend.name} backend has no --{told}: leave it out")
    known = {setting.name: setting for setting in backend.settings}
    for name, value in spec.settings:
        if name not in known:
            raise InputError(f"the {backend.name} backend has no --{name}: leave it out")
        choices = known[name].choices
        if choices and value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _require(backend: Backend) -> None:
    registry.require(backend, export=True)
    if backend.parent is not None:
        _require(registry.load(backend.parent))


def _parent(
    backend: Backend, spec: ExportSpec, source: Artifact, out: Path, phase: Phase
) -> Artifact:
    """Give what the backend converts: the source itself, or its export, new or published before."""
    if backend.parent is None or source.backend == backend.parent:
        return source
    above = registry.load(backend.parent)
    wanted = _inherited(spec, above)
    path = out / f"{wanted.stem}{above.suffixes[0]}"
    return _published(path, wanted, source) or build(above.name, wanted, source, out, phase)


def _inherited(spec: ExportSpec, above: Backend) -> ExportSpec:
    """The part of a request that concerns the parent."""
    known = {setting.name for setting in above.settings}
    settings = tuple((name, value) for name, value in spec.settings if name in known)
    return dataclasses.replace(spec, profile=None, settings=settings)


def _published(path: Path, wanted: ExportSpec, source: Artifact) -> Artifact | None:
    """The artifact at `path` if it is whole, and what exporting `wanted` again would give."""
    if not artifacts.manifest_path(path).is_file() or not path.is_file():
        return None
    try:
        found = artifacts.read(path)
    except ArtifactError as error:
        say(f"{error}: doing so")
        return None
    again = facts_for(source, wanted, {})
    same = again == found.facts.model_copy(update={"tools": again.tools, "build": again.build})
    ours = found.facts.tools.get("u2export") == importlib.metadata.version("u2export")
    return found if same and ours else None


def _checks(draft: Artifact, source: Artifact, parent: Artifact, phase: Phase) -> dict[str, Any]:
    """Compare a draft with its source where it can run; say so where it cannot."""
    backend = registry.load(draft.backend)
    device = backend.devices[0]
    known = parent.checks if parent is not source else {}
    asked = registry.run_spec(backend)
    reason = backend.missing_device(device) or backend.unfit(draft, asked)
    if reason:
        say(f"{draft.path.name} was built but not run on {device}: {reason}")
        return {"not_executed": reason, "parent": {parent.path.name: dict(known)}}
    phase(f"comparing {draft.path.name} with {source.path.name}")
    from u2export.parity.confirm import confirm  # torch: for exporting only

    return confirm(draft, source, known)


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A folder beside the target, on the same disk, that no other export of it uses.

    It bears a fixed name under a lock, so what a killed export left is removed by the next one.

    Raises:
        ExportError: another export of it is running.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ExportError(f"another export of {target} is running: wait for it") from error
    folder = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def publish(draft: Artifact, folder: Path, out: Path) -> None:
    """Move the files to their place so that a kill at any moment leaves a whole artifact or none.

    A model file without a manifest is whole: it carries its facts and its own digest. So the old
    manifest goes first, then the model file is replaced at once, then the new manifest comes.
    Where further files belong to the model file, the old one goes before they are replaced, since
    an old model file with new companions would be neither: a kill there leaves none. So it is with
    a format that has no place for facts: its model file alone is not accepted as ours.
    """
    target = out / draft.path.name
    text = draft.manifest.text().encode()
    manifest = artifacts.manifest_path(target)
    new_manifest = folder / manifest.name
    artifacts.write_durably(new_manifest, text)
    for name in draft.files:
        _sync(folder / name)
    if not all(_same(out / name, sha256) for name, sha256 in draft.files.items()):
        manifest.unlink(missing_ok=True)
        companions = [name for name in draft.files if name != target.name]
        if companions:
            target.unlink(missing_ok=True)
        for name in companions:
            os.replace(folder / name, out / name)
        os.replace(draft.path, target)
    os.replace(new_manifest, manifest)
    _sync(out)


def _same(path: Path, sha256: str) -> bool:
    return path.is_file() and artifacts.sha256_of(path) == sha256


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(target: Path, error: OSError) -> ExportError | InputError:
    """Say in a sentence why a place could not be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ExportError(f"{target} could not be written: {reason}; nothing was left behind")
    return InputError(f"{target} cannot be written: {reason}")
