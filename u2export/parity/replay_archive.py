"""Reading a replay file, which somebody else may have made: sizes, types and shapes come first."""

from __future__ import annotations

import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from u2export.errors import ArtifactError, InputError
from u2export.system.documents import first_line, open_regular

MAX_UNPACKED_BYTES = 1 << 30  # of all entries together; the full network's files have 0.2 GB
_MAX_ENTRIES = 100
_CHUNK_BYTES = 1 << 20
# What zipfile, its decompressors and NumPy raise on damaged content.
_DAMAGES = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


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
            self._archive = zipfile.ZipFile(self._file)
            if len(self._archive.namelist()) > _MAX_ENTRIES:
                raise zipfile.BadZipFile("it has too many entries")
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
        """
        try:
            with self._archive.open(name) as entry:
                while chunk := entry.read(_CHUNK_BYTES):
                    self._left -= len(chunk)
                    if self._left < 0:
                        raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
                    target.write(chunk)
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
            with zipfile.ZipFile(inner) as archive:
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
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(entry)
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
