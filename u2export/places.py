"""Where pictures come from and where their results go."""

from __future__ import annotations

import glob
import itertools
import os
import socket
import string
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from u2export.errors import InputError
from u2export.spec import Format

# What is taken from a folder; a file named by itself may end in anything.
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
STANDARD = Path("-")  # standard input or output instead of a file
TEMPLATE_FIELDS = ("folder", "stem", "name", "index", "ext")
POLL_SECONDS = 0.5  # between two looks at a watched folder
_PART = ".part"
_HOST = socket.gethostname().replace("-", "_")


@dataclass(frozen=True)
class Found:
    """A picture that was found.

    Attributes:
        path: of the file.
        folder: where it lies below the folder that was named; empty for a file named by itself.
    """

    path: Path
    folder: Path = Path()


def find(
    paths: Sequence[Path], *, recursive: bool = False, leave_out: Path | None = None
) -> list[Found]:
    """List the pictures that paths name: files as they are, folders by what lies in them.

    A name with `*`, `?` or `[` that is no file is a pattern, in which `**` stands for any folders.
    Names that begin with a dot are not taken from folders.

    Args:
        paths: files, folders, patterns, or `-`.
        recursive: take what lies in folders of folders too.
        leave_out: a folder below them that holds results.

    Raises:
        InputError: a path does not exist, or a folder holds no picture.
    """
    found: dict[Path, Found] = {}  # what is named twice is taken once
    for path in paths:
        for one in _matching(path):
            if one == STANDARD or not one.is_dir():
                found[one] = Found(one)
                continue
            inside = list(_inside(one, recursive=recursive, leave_out=leave_out))
            if not inside:
                raise InputError(f"the folder {one} holds no pictures")
            found.update({each.path: each for each in inside})
    return list(found.values())


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """List the files of the pictures that paths name.

    Raises:
        InputError: a path does not exist, or a folder holds no picture.
    """
    return [source.path for source in find(paths)]


def _matching(path: Path) -> list[Path]:
    if not glob.has_magic(str(path)) or path.exists():
        return [path]
    matching = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not matching:
        raise InputError(f"no file is called like {path}")
    return matching


def _inside(top: Path, *, recursive: bool, leave_out: Path | None) -> Iterator[Found]:
    """The pictures of a folder, in the order of their names; links to folders are not followed."""
    without = leave_out.resolve() if leave_out else None
    for folder, below, files in os.walk(top, onerror=_unreadable):
        place = Path(folder)
        below[:] = sorted(
            name
            for name in below
            if recursive and not name.startswith(".") and (place / name).resolve() != without
        )
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Found(place / name, place.relative_to(top))


def _unreadable(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):  # it went away since it was listed
        return
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Plan:
    """Which pictures are to be taken, and where their results go.

    A single picture with `out` ending in the format's name goes there; else `out` is a folder, in
    which results lie as their pictures do below the folder that was named, and are called after
    them: `name.png`, or `name.jpg.png` where two would share a name.

    Attributes:
        out: a file for one picture, `-` likewise, or a folder.
        extension: of the results, without the dot.
        template: of the results' names below `out`, such as `{folder}/{stem}-mask.{ext}`.
        recursive: take what lies in folders of folders too.
        skip_existing: leave out pictures whose result is there.
    """

    out: Path
    extension: str = "png"
    template: str | None = None
    recursive: bool = False
    skip_existing: bool = False

    def targets(self, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
        """Pair the pictures that paths name with their results.

        Raises:
            InputError: there are none; several pictures and one file; two pictures of one result;
                a result would overwrite a picture or lie elsewhere; the template has a field there
                is not.
        """
        sources = find(paths, recursive=self.recursive, leave_out=self.out)
        return self._left(targets(sources, self.out, self.extension, self.template))

    def watched(self, paths: Sequence[Path]) -> Iterator[list[tuple[Path, Path]]]:
        """Pair what comes into folders with its results, round after round; never ends.

        A picture that changes is taken again. One that would share its result's name with an
        earlier one has a longer name.

        Raises:
            InputError: a path is no folder, or as for `targets`.
        """
        if self.out.resolve() in {path.resolve() for path in paths}:
            raise InputError(f"{self.out} is watched: results in it would be taken for pictures")
        named: dict[Path, Path] = {}
        owned: set[Path] = set()
        rounds = arriving(paths, recursive=self.recursive, leave_out=self.out)
        for count, sources in enumerate(rounds):
            for source in sources:
                if source.path not in named:
                    result = self._free(source, len(named), owned)
                    named[source.path] = result
                    owned.add(result)
            chosen = {source.path: named[source.path] for source in sources}
            # the first round finds nothing settled
            yield self._left(chosen) if count == 1 else list(chosen.items())

    def _free(self, source: Found, index: int, owned: Collection[Path]) -> Path:
        """A result's place that no earlier picture has."""
        if self.template is not None:
            usual = self.out / _named(self.template, source, index, self.extension)
        else:
            usual = self.out / source.folder / f"{_stem(source.path)}.{self.extension}"
        longer = usual.with_name(f"{source.path.name}.{self.extension}")
        numbered = (
            usual.with_name(f"{source.path.name}.{n}.{self.extension}") for n in itertools.count(2)
        )
        return next(one for one in itertools.chain([usual, longer], numbered) if one not in owned)

    def _left(self, chosen: dict[Path, Path]) -> list[tuple[Path, Path]]:
        sweep({result.parent for result in chosen.values() if result.parent.is_dir()})
        return [
            (picture, result)
            for picture, result in chosen.items()
            if not (self.skip_existing and result.exists())
        ]


def _ending(path: Path) -> str:
    """The format that a file's name ends in."""
    ending = path.suffix.lower().removeprefix(".")
    return "jpg" if ending == "jpeg" else ending


def format_of(name: str | None, out: Path | None) -> Format:
    """The format that was asked for, or that the name of a result tells, or PNG.

    Raises:
        InputError: there is no such format, or the two differ.
    """
    told = None
    if out is not None and not out.is_dir() and _ending(out) in [*map(str, Format)]:
        told = Format(_ending(out))
    asked = Format.named(name) if name else None
    if asked and told and asked is not told:
        raise InputError(f"{out} ends in another format than --format {asked}")
    return asked or told or Format.PNG


def targets(
    sources: Sequence[Found], out: Path, extension: str, template: str | None
) -> dict[Path, Path]:
    """Choose where each picture's result goes, by the rules of a `Plan`."""
    alone = template is None and not out.is_dir() and _ending(out) == extension
    if out == STANDARD or alone:
        if len(sources) != 1:
            raise InputError(f"{len(sources)} pictures do not fit into the one file {out}")
        chosen = {sources[0].path: out}
    elif template is not None:
        chosen = {
            source.path: out / _named(template, source, index, extension)
            for index, source in enumerate(sources)
        }
    else:
        count = Counter((source.folder, source.path.stem) for source in sources)
        chosen = {
            one.path: out / one.folder / f"{_title(one, count)}.{extension}" for one in sources
        }
    if out != STANDARD:
        _refuse_overwriting(chosen)
    return chosen


def _title(source: Found, count: Counter[tuple[Path, str]]) -> str:
    alone = count[source.folder, source.path.stem] == 1
    return _stem(source.path) if alone else source.path.name


def _stem(path: Path) -> str:
    return "picture" if path == STANDARD else path.stem


def _named(template: str, source: Found, index: int, extension: str) -> Path:
    fields = {
        "folder": source.folder.as_posix(),
        "stem": _stem(source.path),
        "name": source.path.name,
        "index": index,
        "ext": extension,
    }
    try:
        asked = {
            field for _, field, _, _ in string.Formatter().parse(template) if field is not None
        }
        if unknown := asked - set(TEMPLATE_FIELDS):
            able, other = ", ".join(TEMPLATE_FIELDS), min(unknown) or "nothing"
            raise InputError(f"a name is made of {able}, not of {other!r}")
        name = template.format_map(fields)
    except (KeyError, ValueError) as error:
        raise InputError(f"{template!r} is no template of names: {error}") from error
    path = Path(os.path.normpath(name))
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise InputError(f"{name!r}, made from {template!r}, does not lie in the folder of results")
    return path


def _refuse_overwriting(chosen: dict[Path, Path]) -> None:
    folders: dict[Path, Path] = {}

    def real(path: Path) -> Path:  # a folder is looked up once, not for each of its files
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        return folders[path.parent] / path.name

    sources = {real(picture) for picture in chosen}
    sources |= {picture.resolve() for picture in chosen if picture.is_symlink()}
    seen: dict[Path, Path] = {}
    for picture, result in chosen.items():
        place = real(result)
        if place in sources:
            raise InputError(f"{result} is one of the pictures: choose another --out")
        if place in seen:
            raise InputError(f"{seen[place]} and {picture} would both be written to {result}")
        seen[place] = picture


def part_of(path: Path) -> Path:
    """Where a result is written before it gets its name: a hidden file beside it, ours alone."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}{_PART}")


def sweep(folders: Collection[Path]) -> None:
    """Remove what killed processes of this machine left half written in folders of results."""
    for folder in folders:
        for part in folder.glob(f".*.{_HOST}-*{_PART}"):
            import psutil  # takes a while, and is hardly ever needed

            owner = part.name.removesuffix(_PART).rpartition("-")[2]
            if owner.isdecimal() and not psutil.pid_exists(int(owner)):
                part.unlink(missing_ok=True)


def arriving(
    paths: Sequence[Path], *, recursive: bool = False, leave_out: Path | None = None
) -> Iterator[list[Found]]:
    """Watch folders: give what has come, once it no longer grows; never ends.

    Yields:
        The pictures that are new since, or changed; an empty list where none are. A folder may be
        empty.

    Raises:
        InputError: one of the paths is no folder.
    """
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} is no folder that could be watched")
    given: dict[Path, tuple[int, int]] = {}
    before: dict[Path, tuple[int, int]] = {}
    while True:
        now: dict[Path, tuple[int, int]] = {}
        settled: list[Found] = []
        for top in paths:
            for source in _inside(top, recursive=recursive, leave_out=leave_out):
                try:
                    told = source.path.stat()
                except FileNotFoundError:  # it went away since
                    continue
                state = now[source.path] = (told.st_size, told.st_mtime_ns)
                if state == before.get(source.path) and state != given.get(source.path):
                    settled.append(source)
                    given[source.path] = state
        yield settled
        before, given = now, {path: given[path] for path in given if path in now}
        time.sleep(POLL_SECONDS)
