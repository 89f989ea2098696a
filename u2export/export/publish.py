"""Publishing an artifact: after a kill at any moment it is complete or absent."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from u2export.core.artifact import Artifact, manifest_path
from u2export.errors import ExportError
from u2export.system.files import file_sha256, move_into_place, sync, write_bytes
from u2export.system.locks import file_lock


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Give a folder beside the target, on the same disk, for one export at a time.

    The folder has a fixed name and a lock. So the next export removes what a killed one left. A
    failed one leaves neither, and no folder that it made.

    Args:
        target: the model file to be published.

    Yields:
        The empty folder.

    Raises:
        ExportError: another export of the target is running.
    """
    absent = [parent for parent in target.parents if not parent.exists()]  # the deepest first
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = file_lock(target.with_name(f".{target.name}.lock"), timeout=0)
    keeps_lock = Path(lock.lock_file).exists()
    try:
        lock.acquire()
    except Timeout as error:
        raise ExportError(f"another export of {target} is running: wait for it") from error
    folder = target.with_name(f".{target.name}.partial")
    try:
        _make_empty(folder)
        yield folder
        keeps_lock = True  # after a success the lock's file stays, as filelock advises
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not keeps_lock:
            # Last of all while it is held, since another export may start from here on: filelock
            # tells an unlinked file from a lock.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
        lock.release()
        for parent in absent:  # what a failure leaves empty
            with contextlib.suppress(OSError):
                parent.rmdir()


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise ExportError(f"{folder} is in use: close the program that has it open")
    folder.mkdir()


def publish(draft: Artifact, folder: Path, out: Path) -> None:
    """Move an artifact's files into place; a kill at any moment leaves a complete one or none.

    A model file without a manifest is complete: it carries its facts and its own digest. So the
    order is: remove the old manifest, replace the model file at once, add the new manifest.

    An artifact with companion files takes one more step. An old model file with new companions
    would be broken. So the old model file is removed before they are replaced, and a kill there
    leaves none. The same holds for a format without embedded facts: its model file alone is not
    accepted as an artifact.

    Args:
        draft: the artifact in `folder`.
        folder: from `workspace`.
        out: the folder for the artifact.
    """
    target = out / draft.path.name
    manifest = manifest_path(target)
    new_manifest = folder / manifest.name
    write_bytes(new_manifest, draft.manifest.text().encode(), durable=True)
    for name in draft.files:
        sync(folder / name)
    if not all(_has_hash(out / name, sha256) for name, sha256 in draft.files.items()):
        manifest.unlink(missing_ok=True)
        _replace_files(draft, folder, out)
    move_into_place(new_manifest, manifest)
    sync(out)


def _replace_files(draft: Artifact, folder: Path, out: Path) -> None:
    """Replace the companions, then the model file."""
    target = out / draft.path.name
    companions = [name for name in draft.files if name != target.name]
    if companions:
        target.unlink(missing_ok=True)
    for name in companions:
        move_into_place(folder / name, out / name)
    move_into_place(draft.path, target)


def _has_hash(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
