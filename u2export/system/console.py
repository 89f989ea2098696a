"""Standard output and standard error, guarded: full, closed, or of a narrow encoding.

What is printed goes through here, whoever prints it: `print`, Typer, rich, or bytes of a picture.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from abc import abstractmethod
from typing import Any, TextIO

from u2export.errors import OutputError

BROKEN_PIPE_STATUS = 141  # 128 and SIGPIPE's number, as of other tools behind `| head`
_ERRORS = "u2export.any-name"  # the name of our way to encode what an encoding lacks
_STANDARD_FDS = (0, 1, 2)
# Marks that change the direction of text, or end a line to some programs.
_HARMFUL_FORMATS = "\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def escape_controls(text: str) -> str:
    """Show characters that command a terminal, or start a line, as their escapes.

    Names of files and messages of runtimes may hold them.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_control(character) else character
        for character in text
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" or character in _HARMFUL_FORMATS


def print_result(text: object, file: TextIO | None = None) -> None:
    """Print the path of a result, for the next program or for a person.

    A terminal gets it with its control characters escaped. A pipe or a file gets it as it is.
    """
    target = file or sys.stdout
    plain = str(text)
    print(escape_controls(plain) if target.isatty() else plain, file=target, flush=True)


def guard_streams() -> None:
    """Replace the process's standard streams by guarded ones; once, when it starts.

    A full or closed standard output becomes an `OutputError`. A pipe that nobody reads any more
    ends the process. Standard error never fails: who cannot be told is not told.
    """
    _occupy_standard_fds()
    codecs.register_error(_ERRORS, _encode_any_name)
    windows = sys.platform == "win32"
    sys.stdout = _guarded(sys.stdout, _OutputGuard(1, closed=sys.stdout is None), windows=windows)
    sys.stderr = _guarded(sys.stderr, _NoteGuard(2, closed=sys.stderr is None), windows=windows)


def _occupy_standard_fds() -> None:
    """Open what is closed of the standard streams, so that no other file gets its number."""
    for descriptor in _STANDARD_FDS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _guarded(stream: TextIO | None, guard: _Guard, *, windows: bool) -> TextIO:
    """A text stream over the guard, encoded as the stream it replaces."""
    if stream is not None and stream not in (sys.__stdout__, sys.__stderr__):
        return stream  # somebody put another in its place
    if windows and stream is not None and stream.isatty():  # the console takes no bytes
        stream.reconfigure(errors="backslashreplace")
        return stream
    encoding = "utf-8" if windows or stream is None else stream.encoding
    line_buffering = stream is not None and stream.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(guard),
        encoding=encoding,
        errors="surrogatepass" if windows else _ERRORS,
        line_buffering=line_buffering or isinstance(guard, _NoteGuard),
    )


def _encode_any_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Give bytes of a file's name as they are, and other characters as backslash escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    encoded = b"".join(
        bytes([ord(character) - 0xDC00])
        if "\udc80" <= character <= "\udcff"
        else character.encode("ascii", "backslashreplace")
        for character in part
    )
    return encoded, error.end


class _Guard(io.RawIOBase):
    """Writes to a file descriptor; after a failure it takes everything and writes nothing."""

    def __init__(self, descriptor: int, *, closed: bool) -> None:
        """Guard a descriptor; a closed one fails at the first byte."""
        super().__init__()
        self._descriptor, self._was_closed, self._failed = descriptor, closed, False

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return not self._was_closed and os.isatty(self._descriptor)

    def write(self, content: Any) -> int:
        """Write some of the bytes, and say how many."""
        if not self._failed:
            try:
                return self._write(content)
            except OSError as error:
                self._failed = True
                self._fail(error)
        return memoryview(content).nbytes

    def _write(self, content: Any) -> int:
        if self._was_closed:
            raise OSError(errno.EBADF, "it is closed")
        while True:
            try:
                return os.write(self._descriptor, content)
            except BlockingIOError:  # its other end reads slowly, and asked not to be waited for
                select.select([], [self._descriptor], [])

    @abstractmethod
    def _fail(self, error: OSError) -> None:
        """React to the first failure."""


class _OutputGuard(_Guard):
    """Guards standard output."""

    def _fail(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise SystemExit(BROKEN_PIPE_STATUS) from None
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


class _NoteGuard(_Guard):
    """Guards standard error."""

    def _fail(self, error: OSError) -> None:
        """Go on: nobody is left who could be told."""
