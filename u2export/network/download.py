"""Downloads from several sources: resumed, hash checked before a file gets its name.

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

from u2export.core.models import Source
from u2export.errors import ArtifactError, DependencyError, InputError
from u2export.system.files import file_sha256, move_into_place, sync
from u2export.system.locks import file_lock

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
            f"{name} is not here and ${OFFLINE} forbids fetching it: {_alternatives(name)}"
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(destination.with_name(f".{name}.lock")):
            if destination.is_file() and (not sha256 or file_sha256(destination) == sha256):
                return file_sha256(destination)
            return _fetch_from_any(
                _with_mirror(sources, name), destination, sha256, timeout_s, retries
            )
    except OSError as error:
        raise InputError(f"{destination} cannot be written: {error.strerror or error}") from error


def _with_mirror(sources: Sequence[Source], name: str) -> list[Source]:
    mirror = os.environ.get(MIRROR)
    return [*([Source("url", f"{mirror.rstrip('/')}/{name}")] if mirror else []), *sources]


def _fetch_from_any(
    sources: Sequence[Source], destination: Path, sha256: str, timeout_s: float, retries: int
) -> str:
    failures: list[str] = []
    wrong = False
    for source in sources:
        try:
            return _fetch_from(source, destination, sha256, timeout_s, retries)
        except _UnusableError as error:
            failures.append(f"{_source_name(source)}: {error}")
            wrong = wrong or type(error) is _WrongFileError
    sentence = (
        f"{destination.name} could not be fetched ({'; '.join(failures) or 'it has no source'}): "
        f"{_alternatives(destination.name)}"
    )
    raise ArtifactError(sentence) if wrong else DependencyError(sentence)


def _fetch_from(
    source: Source, destination: Path, sha256: str, timeout_s: float, retries: int
) -> str:
    """Fetch into a folder of its own, check, and give the file its name.

    Where what an earlier transfer left turns out to be no beginning of this file, it is thrown
    away and the whole file is asked for, once.
    """
    folder = destination.with_name(f".{destination.name}.fetching")
    folder.mkdir(exist_ok=True)
    partial = folder / destination.name
    if not sha256:
        _remove_all(folder)  # nothing could tell whether an earlier piece belongs to this file
    received_before = _received_bytes(folder)
    try:
        _transfer(source, partial, timeout_s, retries)
        digest = _verify(partial, sha256)
    except _WrongFileError:
        _remove_all(folder)
        if not received_before:
            raise
    except gdown.exceptions.DownloadError as error:
        if not received_before or _received_bytes(folder) > received_before:
            raise _UnusableError(_short_reason(error)) from error
        _remove_all(folder)
    else:
        sync(partial)
        move_into_place(partial, destination)
        folder.rmdir()
        return digest
    return _fetch_from(source, destination, sha256, timeout_s, retries)


def _transfer(source: Source, partial: Path, timeout_s: float, retries: int) -> None:
    is_drive = source.kind == "gdrive"
    with _progress_bar(partial.name) as progress:
        try:
            gdown.download(
                id=source.location if is_drive else None,
                url=None if is_drive else source.location,
                output=str(partial),
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
                raise _UnusableError(_short_reason(error.__cause__)) from error
            raise
        except requests.RequestException as error:
            raise _UnusableError(_short_reason(error)) from error


def _verify(partial: Path, sha256: str) -> str:
    with partial.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if not start or start.startswith((b"<!doctype html", b"<html")):
        raise _NoFileError("it gave a web page instead" if start else "it gave an empty file")
    digest = file_sha256(partial)
    if sha256 and digest != sha256:
        raise _WrongFileError(f"it gave sha256 {digest[:12]}… instead of {sha256[:12]}…")
    return digest


def _received_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _short_reason(error: BaseException) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "not reachable"
    return "the transfer broke off"


def _source_name(source: Source) -> str:
    return "Google Drive" if source.kind == "gdrive" else str(urlsplit(source.location).hostname)


def _alternatives(name: str) -> str:
    return (
        f"put {name} into weights/, name a file with --weights, or set ${MIRROR} to a folder "
        "that serves it"
    )


@contextmanager
def _progress_bar(name: str) -> Iterator[_Progress]:
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
