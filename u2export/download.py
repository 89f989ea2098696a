"""Fetching a published file: several sources, resumed where it broke off, never the wrong bytes.

The transfer itself is gdown's, for plain addresses as for Google Drive: it resumes by range,
retries, gives up on silent servers and passes Google's confirmation page.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import gdown
import requests
from filelock import FileLock

from u2export.artifact import sha256_of
from u2export.errors import ArtifactError, DependencyError, InputError
from u2export.spec import Source

MIRROR, OFFLINE = "U2EXPORT_MIRROR", "U2EXPORT_OFFLINE"


class _Progress(Protocol):
    def __call__(self, done: int, total: int | None) -> None: ...


class _UnusableError(Exception):
    """A source did not give the file; the text says why."""


class _WrongFileError(_UnusableError):
    """A source gave another file."""


class _NoFileError(_WrongFileError):
    """A source gave a web page or nothing, as portals and overrun shares do."""


def fetch(
    sources: Sequence[Source],
    destination: Path,
    *,
    sha256: str = "",
    timeout_s: float = 20.0,
    retries: int = 3,
) -> str:
    """Fetch a file from the first source that has it, unless it is there already.

    `$U2EXPORT_MIRROR`, the address of a folder, is tried before all sources; with
    `$U2EXPORT_OFFLINE` set nothing is tried. What a broken transfer left is continued by the next
    call. A second process that wants the same file waits for the first.

    Args:
        sources: where to look, in order.
        destination: the file's place; its folder is made.
        sha256: what the file must have; empty where none was published.
        timeout_s: how long a silent server is waited for, in seconds.
        retries: further attempts per source after a broken transfer.

    Returns:
        The sha256 of the file.

    Raises:
        DependencyError: no source could be reached.
        ArtifactError: every source that could be reached gave another file.
        InputError: the file cannot be written.
    """
    name = destination.name
    if os.environ.get(OFFLINE, "") not in ("", "0"):
        raise DependencyError(
            f"{name} is not here and ${OFFLINE} forbids fetching it: {_ways(name)}"
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(destination.with_name(f".{name}.lock")):
            if destination.is_file() and (not sha256 or sha256_of(destination) == sha256):
                return sha256_of(destination)
            return _from_any(_with_mirror(sources, name), destination, sha256, timeout_s, retries)
    except OSError as error:
        raise InputError(f"{destination} cannot be written: {error.strerror or error}") from error


def _with_mirror(sources: Sequence[Source], name: str) -> list[Source]:
    mirror = os.environ.get(MIRROR)
    return [*([Source("url", f"{mirror.rstrip('/')}/{name}")] if mirror else []), *sources]


def _from_any(
    sources: Sequence[Source], destination: Path, sha256: str, timeout_s: float, retries: int
) -> str:
    failures: list[str] = []
    wrong = False
    for source in sources:
        try:
            return _from_one(source, destination, sha256, timeout_s, retries)
        except _UnusableError as error:
            failures.append(f"{_place(source)}: {error}")
            wrong = wrong or type(error) is _WrongFileError
    sentence = (
        f"{destination.name} could not be fetched ({'; '.join(failures) or 'it has no source'}): "
        f"{_ways(destination.name)}"
    )
    raise ArtifactError(sentence) if wrong else DependencyError(sentence)


def _from_one(
    source: Source, destination: Path, sha256: str, timeout_s: float, retries: int
) -> str:
    """Fetch into a folder of its own, check, and give the file its name.

    Where what an earlier transfer left turns out to be no beginning of this file, it is thrown
    away and the whole file is asked for, once.
    """
    folder = destination.with_name(f".{destination.name}.fetching")
    folder.mkdir(exist_ok=True)
    part = folder / destination.name
    if not sha256:
        _clear(folder)  # nothing could tell whether an earlier piece belongs to this file
    before = _received(folder)
    try:
        _transfer(source, part, timeout_s, retries)
        found = _checked(part, sha256)
    except _WrongFileError:
        _clear(folder)
        if not before:
            raise
    except gdown.exceptions.DownloadError as error:
        if not before or _received(folder) > before:
            raise _UnusableError(_short(error)) from error
        _clear(folder)
    else:
        os.replace(part, destination)
        folder.rmdir()
        return found
    return _from_one(source, destination, sha256, timeout_s, retries)


def _transfer(source: Source, part: Path, timeout_s: float, retries: int) -> None:
    drive = source.kind == "gdrive"
    with _shown(part.name) as progress:
        try:
            gdown.download(
                id=source.location if drive else None,
                url=None if drive else source.location,
                output=str(part),
                quiet=True,
                use_cookies=False,
                resume=True,
                progress=progress,
                timeout=timeout_s,
                retries=retries,
            )
        except gdown.exceptions.FileURLRetrievalError as error:
            raise _UnusableError("Google Drive refuses it, often for too many downloads") from error
        except gdown.exceptions.DownloadError as error:
            if isinstance(error.__cause__, requests.RequestException):
                raise _UnusableError(_short(error.__cause__)) from error
            raise
        except requests.RequestException as error:
            raise _UnusableError(_short(error)) from error


def _checked(part: Path, sha256: str) -> str:
    with part.open("rb") as file:
        start = file.read(256).lstrip().lower()
        os.fsync(file.fileno())
    if not start or start.startswith((b"<!doctype html", b"<html")):
        raise _NoFileError("it gave a web page instead" if start else "it gave an empty file")
    found = sha256_of(part)
    if sha256 and found != sha256:
        raise _WrongFileError(f"it gave sha256 {found[:12]}… instead of {sha256[:12]}…")
    return found


def _received(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _short(error: BaseException) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "not reachable"
    return "the transfer broke off"


def _place(source: Source) -> str:
    return "Google Drive" if source.kind == "gdrive" else str(urlsplit(source.location).hostname)


def _ways(name: str) -> str:
    return (
        f"put {name} into weights/, name a file with --weights, or set ${MIRROR} to a folder "
        "that serves it"
    )


@contextmanager
def _shown(name: str) -> Iterator[_Progress]:
    """Show received bytes on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"fetching {name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
