"""From weights to an artifact: parents first, checked before it is published, whole or not."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from u2export import artifact as artifacts
from u2export import registry, weights
from u2export.artifact import Artifact
from u2export.backend import Backend
from u2export.errors import ExportError, InputError
from u2export.progress import say
from u2export.spec import MODELS, ExportSpec

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
    registry.require(backend, export=True)
    phase("finding the weights")
    if fallback:
        source, note = weights.find_default(given)
        if note:
            say(note)
    else:
        source = weights.find(spec.model, given)
    facts = source.facts
    variant = facts.weights.name.replace(":", "") if facts.weights.origin == "random" else ""
    spec = dataclasses.replace(spec, model=MODELS[facts.model], variant=variant)
    return build(backend_name, spec, source, out, phase)


def build(
    backend_name: str,
    spec: ExportSpec,
    source: Artifact,
    out: Path,
    phase: Phase = lambda name: None,
) -> Artifact:
    """Export weights, confirm the result against PyTorch, and publish it with its manifest.

    Args:
        backend_name: which exporter.
        spec: what is asked for.
        source: the weights, from `u2export.weights.find`.
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
    registry.require(backend, export=True)
    target = out / f"{spec.stem}{backend.suffixes[0]}"
    try:
        with _workspace(target) as folder:
            draft = _export(backend, spec, source, folder / target.name, out, phase)
            phase(f"comparing {target.name} with PyTorch")
            from u2export.parity.confirm import confirm  # torch: for exporting only

            draft = _with_checks(draft, confirm(draft, source))
            _publish(draft, folder, out)
    except OSError as error:
        raise _unwritable(target, error) from error
    note = weights.pin(source)
    if note:
        say(note)
    return registry.open_artifact(target)


def _check(backend: Backend, spec: ExportSpec) -> None:
    if spec.precision not in backend.precisions:
        able = ", ".join(backend.precisions)
        raise InputError(f"the {backend.name} backend exports {able}, not {spec.precision}")
    plain = ExportSpec(spec.model, spec.model.picture.size)
    for option in ("batch", "size", "all_outputs", "opset"):
        if option not in backend.options and getattr(spec, option) != getattr(plain, option):
            raise InputError(
                f"the {backend.name} backend has no --{option.replace('_', '-')}: leave it out"
            )


def _export(
    backend: Backend, spec: ExportSpec, source: Artifact, path: Path, out: Path, phase: Phase
) -> Artifact:
    parent = source
    if backend.parent is not None:
        parent = build(backend.parent, spec, source, out, phase)
    phase(f"converting {spec.model.name} to {path.name}")
    facts = backend.export(parent, spec, path)
    files = {path.name: artifacts.sha256_of(path)}
    return Artifact(path, backend.name, facts, files)


def _with_checks(draft: Artifact, checks: dict[str, object]) -> Artifact:
    return dataclasses.replace(draft, checks=checks)


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A folder beside the target, on the same disk, that no other export of it uses.

    It bears a fixed name under a lock, so what a killed export left is removed by the next one.
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


def _publish(draft: Artifact, folder: Path, out: Path) -> None:
    """Move the files to their place so that a kill at any moment leaves a whole artifact or none.

    A model file without a manifest is whole: it carries its facts and its own digest. So the old
    manifest goes first, then the model file is replaced at once, then the new manifest comes.
    """
    target = out / draft.path.name
    text = draft.manifest.text().encode()
    manifest = artifacts.manifest_path(target)
    new_manifest = folder / manifest.name
    artifacts.write_durably(new_manifest, text)
    _sync(draft.path)
    if not _same(target, draft.files[target.name]):
        manifest.unlink(missing_ok=True)
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


def _unwritable(target: Path, error: OSError) -> ExportError | InputError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ExportError(f"{target} could not be written: {reason}; nothing was left behind")
    return InputError(f"{target} cannot be written: {reason}")
