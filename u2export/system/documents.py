"""Reading what others wrote: regular files of a bounded size, and JSON that cannot surprise.

Everything that is read from disk and small enough for memory comes through here.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

Model = TypeVar("Model", bound="BaseModel")
MAX_DOCUMENT_BYTES = 256 << 20  # a benchmark of many hours has 20 MB
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; never wait for what a pipe or a device may give.

    Raises:
        OSError: it is absent, may not be read, or is no regular file.
    """
    with _possible_name(path):
        return open(path, "rb", opener=_open_descriptor)  # the caller closes it


@contextmanager
def _possible_name(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # a zero byte, or half of a pair of surrogates
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error


def _open_descriptor(path: str, flags: int) -> int:
    # only Linux and macOS have names that block whoever opens them
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(os.fstat(descriptor).st_mode, Path(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_file(path: Path) -> bool:
    """Whether a path names a file; `Path.is_file` raises where no disk takes the name."""
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """Whether a path names a folder; as `is_file`."""
    return os.path.isdir(path)


def is_there(path: Path) -> bool:
    """Whether a path names anything; as `is_file`."""
    return os.path.exists(path)


def is_link(path: Path) -> bool:
    """Whether a path names a link; as `is_file`."""
    return os.path.islink(path)


def check_regular(path: Path) -> None:
    """Check that a path names a regular file, without opening it.

    Raises:
        OSError: it is absent, cannot be resolved, or is no regular file.
    """
    with _possible_name(path):
        mode = path.stat().st_mode
    _require_regular(mode, path)


def _require_regular(mode: int, path: Path) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for matches, name in _KINDS if matches(mode)), "something special")
    raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def read_bounded(path: Path, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Read a regular file of a bounded size.

    Raises:
        OSError: as for `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes} bytes", str(path))
    return content


def parse_json(content: bytes | str) -> Any:
    """Parse JSON of finite numbers and of a depth that Python can hold.

    Raises:
        ValueError: it is no such JSON; its text says why.
    """
    try:
        return json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_model(content: bytes | str, kind: type[Model]) -> Model:
    """Parse JSON into a model, by the rules of `parse_json`; text is no number, nor is true.

    Raises:
        ValueError: it is no such JSON or does not fit the model; its text is one line.
    """
    from pydantic import ValidationError  # takes a while, and files are hashed without it

    parse_json(content)
    try:
        return kind.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{field}: {first['msg']}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
