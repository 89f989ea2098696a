"""Reading a replay file, which somebody else may have made: sizes, types and shapes come first."""

from __future__ import annotations

import io
import lzma
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from u2export.errors import ArtifactError, InputError
from u2export.system.documents import first_line, open_regular
from u2export.system.files import write_error

MAX_UNPACKED_BYTES = 1 << 30  # of all entries together; the full network's files have 0.2 GB
# Of zip's record at the end, of the comment behind it, and of a list of some hundred entries.
_END_BYTES, _MAX_COMMENT_BYTES, _MAX_LIST_BYTES = 22, 65_535, 65_536
_END_MARK, _END_MARK_64 = b"PK\x05\x06", b"PK\x06\x07"
_CHUNK_BYTES = 1 << 20
# What zipfile, its decompressors and NumPy raise on damaged content.
_DAMAGES = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def _open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open an archive whose list of entries is short.

    zipfile reads the whole list at once, and a list of millions is small when it is compressed. So
    the list's size is taken from the record at the archive's end; wherever such a record could be.

    Raises:
        zipfile.BadZipFile: it is no archive, or its list is long.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_BYTES - _MAX_COMMENT_BYTES))
    tail = file.read()
    for found in re.finditer(_END_MARK, tail):
        record = tail[found.start() : found.start() + _END_BYTES]
        listed = int.from_bytes(record[12:16], "little")
        if len(record) == _END_BYTES and _MAX_LIST_BYTES < listed <= size:
            raise zipfile.BadZipFile("its list of entries is too long")
    if _END_MARK_64 in tail:  # its list may be of any length, and none of ours has it
        raise zipfile.BadZipFile("it is an archive of over 4 GB, or pretends to be")
    return zipfile.ZipFile(file)


def _write(target: BinaryIO, content: bytes) -> None:
    """Write, so that a full disk is not taken for damage."""
    try:
        target.write(content)
    except OSError as error:
        raise write_error(Path(str(getattr(target, "name", "memory"))), error) from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array; NumPy parses it as Python and raises what its parser raises."""
    try:
        return np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # SyntaxError, TypeError, TokenError and more
        raise ValueError(f"an array has a damaged header: {first_line(error)}") from error


class ReplayArchive:
    """The entries of a replay file, unpacked within a bound."""

    def __init__(self, path: Path) -> None:
        """Read the list of entries.

        Raises:
            InputError: there is no such file, or it cannot be read.
            ArtifactError: it is no archive.
        """
        self._path, self._left = path, MAX_UNPACKED_BYTES
        try:
            self._file = open_regular(path)
        except FileNotFoundError as error:
            raise InputError(f"there is no replay file at {path}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        try:
            self._archive = _open_zip(self._file)
        except _DAMAGES as error:
            self._file.close()
            raise self.damage(error) from error

    def names(self) -> list[str]:
        """The entries' names."""
        return self._archive.namelist()

    def damage(self, error: Exception | str) -> ArtifactError:
        """What to raise for damaged content."""
        reason = error if isinstance(error, str) else first_line(error)
        return ArtifactError(f"{self._path} is no replay file, or was cut: {reason}")

    def read(self, name: str) -> bytes:
        """Unpack an entry into memory.

        Raises:
            ArtifactError: it is absent, damaged or too large.
        """
        content = io.BytesIO()
        self.unpack(name, content)
        return content.getvalue()

    def unpack(self, name: str, target: BinaryIO) -> None:
        """Unpack an entry into an open file.

        Raises:
            ArtifactError: it is absent, damaged or too large.
            OutputError: the disk is full.
        """
        try:
            with self._archive.open(name) as entry:
                while chunk := entry.read(_CHUNK_BYTES):
                    self._left -= len(chunk)
                    if self._left < 0:
                        raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
                    _write(target, chunk)
        except _DAMAGES as error:
            raise self.damage(error) from error

    def arrays(self, name: str, kinds: Mapping[str, tuple[type, int]]) -> dict[str, NDArray[Any]]:
        """Read the arrays of an `.npz` entry.

        Args:
            name: of the entry.
            kinds: by the array's name, the type of its values and its number of dimensions.

        Raises:
            ArtifactError: one is absent, or of another type or number of dimensions.
        """
        inner = io.BytesIO(self.read(name))
        try:
            with _open_zip(inner) as archive:
                return {key: self._array(archive, key, *kind) for key, kind in kinds.items()}
        except _DAMAGES as error:
            raise self.damage(error) from error

    def _array(
        self, archive: zipfile.ZipFile, key: str, kind: type, dimensions: int
    ) -> NDArray[Any]:
        information = archive.getinfo(f"{key}.npy")
        if information.file_size > self._left:
            raise ValueError(f"{key} is too large")
        with archive.open(information) as entry:
            version = np.lib.format.read_magic(entry)
            if version != (1, 0):
                raise ValueError(f"{key} has an unknown header")
            shape, fortran, dtype = _read_header(entry)
            count = math.prod(shape)
            if dtype != np.dtype(kind) or len(shape) != dimensions:
                raise ValueError(f"{key} is {dtype} {shape}")
            if not 0 < count * dtype.itemsize <= self._left:
                raise ValueError(f"{key} has the shape {shape}")
            content = entry.read(count * dtype.itemsize + 1)
        self._left -= len(content)
        if len(content) != count * dtype.itemsize:
            raise ValueError(f"{key} was cut")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C").copy()

    def close(self) -> None:
        """Close the file."""
        self._archive.close()
        self._file.close()
