"""Where input pictures come from: files, folders, patterns and watched folders."""

from __future__ import annotations

import glob
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from u2export.errors import InputError
from u2export.images.formats import left_out_reason, readable_suffixes
from u2export.images.frames import Frame, Picture, frames_of
from u2export.system.console import escape_controls
from u2export.system.documents import check_regular, is_folder, is_there
from u2export.system.files import resolved
from u2export.system.progress import say

STDIO = Path("-")  # standard input or output instead of a file
POLL_SECONDS = 0.5  # between two scans of a watched folder
_FileState = tuple[int, int]  # size in bytes, time of modification in nanoseconds


@dataclass(frozen=True)
class InputImage:
    """A picture to process.

    Attributes:
        path: of the file.
        folder: of the file, relative to the folder that was searched; empty for a file that was
            named itself.
        frame: its number in a file of several, from 1; None where the file is taken as one picture.
    """

    path: Path
    folder: Path = Path()
    frame: int | None = None

    @property
    def picture(self) -> Picture:
        """What is to be read."""
        return self.path if self.frame is None else Frame(self.path, self.frame)


def each_frame(images: Iterable[InputImage]) -> list[InputImage]:
    """Take files of several pictures apart; other files stay.

    Raises:
        InputError: standard input is among them, which is read only once.
    """
    taken: list[InputImage] = []
    for image in images:
        if image.path == STDIO:
            raise InputError("--frames all takes files: of standard input it cannot count them")
        frames = frames_of(image.path)
        taken += [replace(image, frame=frame.number) for frame in frames] or [image]
    return taken


def image_files(paths: Sequence[Path]) -> list[Path]:
    """List the picture files that paths name; see `find_images`.

    Raises:
        InputError: a path does not exist, or a folder holds no picture.
    """
    return [image.path for image in find_images(paths)]


def find_images(
    paths: Sequence[Path], *, recursive: bool = False, exclude: Path | None = None
) -> list[InputImage]:
    """List the pictures that paths name: files themselves, and the pictures in folders.

    A path with `*`, `?` or `[` is a pattern, unless a file has that name. `**` in a pattern matches
    any folders. Hidden files and folders, whose names begin with a dot, are skipped in folders.
    What else is left out of a folder is told on standard error.

    Args:
        paths: files, folders, patterns, or `-`.
        recursive: search subfolders too.
        exclude: a subfolder that holds results.

    Raises:
        InputError: a path does not exist, or a folder holds no picture.
    """
    images: dict[Path, InputImage] = {}  # by path: a file that is named twice appears once
    for pattern in paths:
        for path in _expand_pattern(pattern):
            if path == STDIO or not is_folder(path):
                images[path] = InputImage(path)
                continue
            left_out = LeftOut()
            in_folder = list(
                _images_in(path, recursive=recursive, exclude=exclude, left_out=left_out)
            )
            if not in_folder:
                because = f": {left_out}" if left_out else ""
                raise InputError(f"the folder {path} holds no pictures{because}")
            if left_out:
                say(f"left out of {path}: {left_out}")
            images.update({image.path: image for image in in_folder})
    return list(images.values())


class LeftOut:
    """What a search passed over in a folder: files by suffix, and names that are no files."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._suffixes: Counter[str] = Counter()
        self._odd: list[str] = []

    def add_suffix(self, suffix: str) -> None:
        """Count a file that is no picture by its suffix."""
        self._suffixes[suffix] += 1

    def add_odd(self, path: Path, reason: str) -> None:
        """Note a name of a picture that cannot be read."""
        self._odd.append(f"{path} ({reason})")

    def __bool__(self) -> bool:
        """Whether anything was left out."""
        return bool(self._suffixes or self._odd)

    def __str__(self) -> str:
        """All of it, as a phrase."""
        counted = []
        for suffix, count in sorted(self._suffixes.items()):
            reason = left_out_reason(suffix)
            because = f" ({reason})" if reason else ""
            counted.append(f"{count} {escape_controls(suffix) or 'without ending'}{because}")
        return ", ".join([*counted, *self._odd])


def _expand_pattern(path: Path) -> list[Path]:
    if not glob.has_magic(str(path)) or is_there(path):
        return [path]
    try:
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
    except ValueError:  # no disk takes such a name
        matches = []
    if not matches:
        raise InputError(f"no file is called like {path}")
    return matches


def _images_in(
    top: Path, *, recursive: bool, exclude: Path | None, left_out: LeftOut | None = None
) -> Iterator[InputImage]:
    """Yield the pictures of a folder, sorted by name; links to folders are not followed.

    Pipes, devices and links that lead nowhere are passed over.
    """
    left_out = LeftOut() if left_out is None else left_out
    suffixes = readable_suffixes()
    excluded = resolved(exclude) if exclude else None
    for name_of_folder, subfolders, files in os.walk(top, onerror=_raise_unreadable):
        folder = Path(name_of_folder)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if recursive and not name.startswith(".") and resolved(folder / name) != excluded
        )
        for name in sorted(files):
            if name.startswith("."):
                continue
            suffix = Path(name).suffix.lower()
            if suffix not in suffixes:
                left_out.add_suffix(suffix)
                continue
            try:
                check_regular(folder / name)
            except FileNotFoundError:  # a link that leads nowhere, or a file that is just removed
                yield InputImage(folder / name, folder.relative_to(top))
            except OSError as error:
                left_out.add_odd(folder / name, error.strerror or str(error))
            else:
                yield InputImage(folder / name, folder.relative_to(top))


def _raise_unreadable(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):  # removed since it was listed
        return
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def watch_folders(
    paths: Sequence[Path], *, recursive: bool = False, exclude: Path | None = None
) -> Iterator[list[InputImage]]:
    """Watch folders for pictures; never ends.

    A picture is reported once its size and time stay the same between two scans.

    Args:
        paths: folders, which may be empty.
        recursive: search subfolders too.
        exclude: a subfolder that holds results.

    Yields:
        After each scan, the pictures that are new or changed; often an empty list.

    Raises:
        InputError: one of the paths is no folder.
    """
    for path in paths:
        if not is_folder(path):
            raise InputError(f"{path} is no folder that could be watched")
    reported: dict[Path, _FileState] = {}
    previous: dict[Path, _FileState] = {}
    while True:
        current: dict[Path, _FileState] = {}
        settled: list[InputImage] = []
        for folder in paths:
            for image in _images_in(folder, recursive=recursive, exclude=exclude):
                state = _file_state(image.path)
                if state is None:
                    continue
                current[image.path] = state
                if state == previous.get(image.path) and state != reported.get(image.path):
                    settled.append(image)
                    reported[image.path] = state
        yield settled
        previous = current
        reported = {path: state for path, state in reported.items() if path in current}
        time.sleep(POLL_SECONDS)


def _file_state(path: Path) -> _FileState | None:
    """The size and time of a file; None where it was removed."""
    try:
        status = path.stat()
    except OSError:  # also where it may not be looked at
        return None
    return status.st_size, status.st_mtime_ns
