"""OpenVINO's cache of compiled models, checked by hashes.

OpenVINO itself would run a changed file of the cache as it is.
"""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

from u2export.backends.openvino.library import VERSION
from u2export.core.artifact import Artifact
from u2export.errors import InputError
from u2export.system.cache import compiled_models_folder
from u2export.system.files import file_sha256, write_bytes
from u2export.system.progress import say


def cache_folder(artifact: Artifact) -> Path | None:
    """Make the cache folder of this model file for this version of OpenVINO.

    Returns:
        The folder; None where it cannot be made.
    """
    weights_path = artifact.path.with_suffix(".bin")
    model_hash = file_sha256(artifact.path)
    weights_hash = artifact.files.get(weights_path.name) or file_sha256(weights_path)
    name = f"openvino-{VERSION}-{model_hash[:16]}-{weights_hash[:16]}"
    folder = compiled_models_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"compiled models cannot be kept in {folder.parent}: {error.strerror}")
        return None
    return folder


def remove_unverified(folder: Path) -> None:
    """Remove compiled models that do not have their recorded hash."""
    for blob in folder.glob("*.blob"):
        try:
            if _hash_path(blob).read_bytes() == file_sha256(blob).encode():
                continue
        except (OSError, InputError):
            pass  # no recorded hash, or another process changes the files: unverified
        with contextlib.suppress(OSError):
            blob.unlink(missing_ok=True)


def record_hashes(folder: Path) -> None:
    """Record the hashes of compiled models that have none, or an older one."""
    for blob in folder.glob("*.blob"):
        hash_path = _hash_path(blob)
        with contextlib.suppress(OSError, InputError):
            if not hash_path.exists() or hash_path.stat().st_mtime_ns < blob.stat().st_mtime_ns:
                write_bytes(hash_path, file_sha256(blob).encode())
                # OpenVINO lets nobody else read it, whatever the user's mask says
                blob.chmod(stat.S_IMODE(hash_path.stat().st_mode))


def _hash_path(blob: Path) -> Path:
    return blob.with_suffix(".sha256")
