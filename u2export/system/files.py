"""Files that appear complete or not at all, and their hashes.

Everything that others may find half-written goes through `atomic_file` or `move_into_place`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from u2export.errors import InputError, OutputError
from u2export.system.documents import is_file, is_folder, is_there, open_regular

_PARTIAL_SUFFIX = ".part"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_PARTIAL_COUNT = itertools.count()
_OWN_FOLDERS: set[Path] = set()  # where this process made such files
_CHUNK_BYTES = 1 << 20
# Windows replaces no file that is open; indexers and virus scanners let go of it soon.
_REPLACE_TRIES = 10 if sys.platform == "win32" else 1
_REPLACE_WAIT_S = 0.05
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file that gets its name when the block ends without an error.

    The content goes into a hidden file in the same folder. An error removes that file and leaves
    what had the name before. The folder is made if absent. A link is replaced, not followed.

    Args:
        path: the file.
        durable: wait until the disk has the content before the file gets its name.

    Raises:
        OSError: the file or its folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                _flush_to_disk(file.fileno())
        move_into_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file, complete or not at all.

    Raises:
        OSError: as for `atomic_file`.
    """
    with atomic_file(path, durable=durable) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8, complete or not at all.

    What a link points to is written, not the link. A pipe or a device, such as `/dev/stdout`, is
    written as it is.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        if _is_stream(path):
            path.write_text(content, encoding="utf-8")
        else:
            write_bytes(resolved(path), content.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def move_into_place(source: Path, target: Path) -> None:
    """Give a finished file its name, on the same disk; `sync` it before.

    Raises:
        OSError: the folder refuses.
    """
    for _ in range(_REPLACE_TRIES - 1):
        try:
            os.replace(source, target)
        except PermissionError:
            time.sleep(_REPLACE_WAIT_S)
        else:
            return
    os.replace(source, target)


def scratch_folder(prefix: str = "u2export-") -> tempfile.TemporaryDirectory[str]:
    """Make a folder that is removed with the work.

    Windows keeps a file that a runtime still maps. That must not fail work that is done.
    """
    return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)


def sync(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names in a folder.

    Raises:
        OSError: the disk refuses.
    """
    if path.is_dir() and sys.platform == "win32":  # it opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        _flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def _flush_to_disk(descriptor: int) -> None:
    if sys.platform == "darwin":  # its fsync leaves the content in the drive's own cache
        import fcntl

        with contextlib.suppress(OSError):  # some network disks do not know it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def partial_path(path: Path) -> Path:
    """A hidden file beside `path` that no other thread or process uses.

    Its name is short, whatever the length of the target's name.
    """
    name = f".u2export-{_HOST}-{os.getpid()}-{next(_PARTIAL_COUNT)}{_PARTIAL_SUFFIX}"
    _OWN_FOLDERS.add(path.parent)
    return path.with_name(name)


def remove_own_partials() -> None:
    """Remove the hidden files of this process, which is about to end at once."""
    for folder in list(_OWN_FOLDERS):
        for partial in folder.glob(f".u2export-{_HOST}-{os.getpid()}-*{_PARTIAL_SUFFIX}"):
            with contextlib.suppress(OSError):
                partial.unlink()


def remove_partials(folders: Collection[Path]) -> None:
    """Remove the hidden files that killed processes of this machine left in these folders."""
    for folder in folders:
        for partial in folder.glob(f".u2export-{_HOST}-*{_PARTIAL_SUFFIX}"):
            import psutil  # takes a while, and is hardly ever needed

            owner = partial.name.split("-")[2]
            if owner.isdecimal() and not psutil.pid_exists(int(owner)):
                partial.unlink(missing_ok=True)


def check_writable(*paths: Path | None) -> None:
    """Make sure that files can be written later; quick, before work that takes long.

    Raises:
        InputError: a path is a folder, lies in no folder, or may not be written.
    """
    for path in paths:
        if path is None or _is_stream(path):
            continue
        target = resolved(path)
        _check_name(target, path)
        if is_folder(target):
            raise InputError(f"{path} cannot be written: it is a folder")
        folder = next((parent for parent in target.parents if is_there(parent)), None)
        if folder is None:
            raise InputError(f"{path} cannot be written: there is no {target.anchor}")
        if not is_folder(folder):
            raise InputError(f"{path} cannot be written: {folder} is no folder")
        if not _takes_files(folder):
            raise InputError(f"{path} cannot be written: {folder} may not be changed")


def _check_name(target: Path, path: Path) -> None:
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return  # the name is free, or the folders say more
    except OSError as error:
        raise write_error(path, error) from error


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder. Windows tells only whoever tries."""
    if sys.platform != "win32":
        return os.access(folder, os.W_OK)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def write_error(target: Path, error: OSError) -> OutputError | InputError:
    """Turn the system's refusal into one of our errors: a full disk, or a bad path."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return OutputError(f"{target} could not be written: {reason}; nothing was left behind")
    return InputError(f"{target} cannot be written: {reason}")


def resolved(path: Path) -> Path:
    """The absolute path without links, as far as it exists; a link to itself stays a link.

    `Path.resolve` raises there.
    """
    return Path(os.path.realpath(path))


def file_sha256(path: Path) -> str:
    """Hash a file's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            return stream_sha256(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def stream_sha256(file: BinaryIO) -> str:
    """Hash what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _is_stream(path: Path) -> bool:
    """Whether the path is a pipe or a device, where nothing can be replaced."""
    return is_there(path) and not is_file(path) and not is_folder(path)
