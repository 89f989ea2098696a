"""Where results go: one path for each picture, never over a picture."""

from __future__ import annotations

import itertools
import os
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from u2export.core.enums import Format, Frames
from u2export.errors import InputError
from u2export.images.frames import Picture, file_of
from u2export.images.inputs import STDIO, InputImage, each_frame, find_images, watch_folders
from u2export.system.documents import is_folder, is_link, is_there
from u2export.system.files import remove_partials, resolved

TEMPLATE_FIELDS = ("folder", "stem", "name", "index", "frame", "ext")
_TELLS_FRAMES_APART = frozenset({"index", "frame"})


@dataclass(frozen=True)
class OutputPaths:
    """Which pictures to process, and where their results go.

    For a single picture, `out` may be a file, whose name ends in the format's suffix. Otherwise
    `out` is a folder. Its subfolders are those of the folder that was searched. A result has the
    picture's name: `name.png`, or `name.jpg.png` where two pictures would share that name. Of a
    file of several pictures, each result has its number: `name-0001.png`.

    Attributes:
        out: a file or `-` for one picture; or a folder.
        extension: of the results, without the dot.
        template: of the results' names below `out`, such as `{folder}/{stem}-mask.{ext}`.
        recursive: search subfolders too.
        skip_existing: skip pictures whose result exists.
        frames: of a file that holds several pictures, take the first or all.
    """

    out: Path
    extension: str = "png"
    template: str | None = None
    recursive: bool = False
    skip_existing: bool = False
    frames: Frames = Frames.FIRST

    def __post_init__(self) -> None:
        """Check that a template tells the pictures of a file apart.

        Raises:
            InputError: it does not, or has an unknown field.
        """
        if self.template is None or self.frames is Frames.FIRST:
            return
        if not _template_fields(self.template) & _TELLS_FRAMES_APART:
            raise InputError("with --frames all, a template of names needs {frame}")

    def targets(self, paths: Sequence[Path]) -> list[tuple[Picture, Path]]:
        """Pair the pictures that paths name with their results.

        Raises:
            InputError: there are no pictures; several pictures have one output file, or one result;
                a result would overwrite a picture, or lie outside `out`; the template has an
                unknown field; all pictures of standard input were asked for.
        """
        images = self._taken(find_images(paths, recursive=self.recursive, exclude=self.out))
        results = choose_output_paths(images, self.out, self.extension, self.template)
        return self._without_existing(results)

    def _taken(self, images: list[InputImage]) -> list[InputImage]:
        return each_frame(images) if self.frames is Frames.ALL else images

    def watch(self, paths: Sequence[Path]) -> Iterator[list[tuple[Picture, Path]]]:
        """Watch folders and pair new pictures with their results; never ends.

        A picture that changes is processed again. If its result's name is taken by an earlier
        picture, it gets a longer name.

        Yields:
            After each scan, pairs of picture and result.

        Raises:
            InputError: a path is no folder, or as for `choose_output_paths`.
        """
        if resolved(self.out) in {resolved(path) for path in paths}:
            raise InputError(f"{self.out} is watched: results in it would be taken for pictures")
        results: dict[Picture, Path] = {}
        used: set[Path] = set()
        scans = watch_folders(paths, recursive=self.recursive, exclude=self.out)
        for scan, images in enumerate(map(self._taken, scans)):
            for image in images:
                if image.picture not in results:
                    result = self._unused_path(image, len(results), used)
                    results[image.picture] = result
                    used.add(result)
            settled = {image.picture: results[image.picture] for image in images}
            # scan 0 only records states: scan 1 reports the pictures that were there at the start
            yield self._without_existing(settled) if scan == 1 else list(settled.items())

    def _unused_path(self, image: InputImage, index: int, used: Collection[Path]) -> Path:
        """The first candidate for a result's path that no earlier picture has."""
        if self.template is not None:
            usual = self.out / _name_from_template(self.template, image, index, self.extension)
        else:
            stem = _numbered(_stem(image.path), image)
            usual = self.out / image.folder / f"{stem}.{self.extension}"
        name = _numbered(image.path.name, image)
        longer = usual.with_name(f"{name}.{self.extension}")
        numbered = (
            usual.with_name(f"{name}.{number}.{self.extension}") for number in itertools.count(2)
        )
        candidates = itertools.chain([usual, longer], numbered)
        return next(candidate for candidate in candidates if candidate not in used)

    def _without_existing(self, results: dict[Picture, Path]) -> list[tuple[Picture, Path]]:
        """Pairs to process; also removes what killed runs left in the folders of the results."""
        remove_partials({result.parent for result in results.values() if is_folder(result.parent)})
        return [
            (picture, result)
            for picture, result in results.items()
            if not (self.skip_existing and is_there(result))
        ]


def output_format(name: str | None, out: Path | None) -> Format:
    """The requested format, else the format of the output file's suffix, else PNG.

    Raises:
        InputError: there is no such format, or the two differ.
    """
    from_suffix = None
    if out is not None and not is_folder(out) and _format_suffix(out) in [*map(str, Format)]:
        from_suffix = Format(_format_suffix(out))
    requested = Format.named(name) if name else None
    if requested and from_suffix and requested is not from_suffix:
        raise InputError(f"{out} ends in another format than --format {requested}")
    return requested or from_suffix or Format.PNG


def choose_output_paths(
    images: Sequence[InputImage], out: Path, extension: str, template: str | None
) -> dict[Picture, Path]:
    """Choose the path of each picture's result, by the rules of `OutputPaths`.

    Returns:
        The result's path by the picture.

    Raises:
        InputError: as for `OutputPaths.targets`.
    """
    is_file = template is None and not is_folder(out) and _format_suffix(out) == extension
    if out == STDIO or is_file:
        if len(images) != 1:
            raise InputError(f"{len(images)} pictures do not fit into the one file {out}")
        results = {images[0].picture: out}
    elif template is not None:
        results = {
            image.picture: out / _name_from_template(template, image, index, extension)
            for index, image in enumerate(images)
        }
    else:
        files = {image.path: (image.folder, image.path.stem) for image in images}
        counts = Counter(files.values())
        results = {
            image.picture: out / image.folder / f"{_unique_stem(image, counts)}.{extension}"
            for image in images
        }
    if out != STDIO:
        _refuse_overwriting(results)
    return results


def _format_suffix(path: Path) -> str:
    """The suffix of a path as a format's name."""
    suffix = path.suffix.lower().removeprefix(".")
    return "jpg" if suffix == "jpeg" else suffix


def _unique_stem(image: InputImage, counts: Counter[tuple[Path, str]]) -> str:
    """The picture's stem; its name with the suffix, where files of a folder share the stem."""
    is_unique = counts[image.folder, image.path.stem] == 1
    return _numbered(_stem(image.path) if is_unique else image.path.name, image)


def _numbered(name: str, image: InputImage) -> str:
    """Put the number of a frame behind a name."""
    return name if image.frame is None else f"{name}-{image.frame:04}"


def _stem(path: Path) -> str:
    return "picture" if path == STDIO else path.stem


def _name_from_template(template: str, image: InputImage, index: int, extension: str) -> Path:
    """Fill a template in; the result lies below the output folder."""
    values = {
        "folder": image.folder.as_posix(),
        "stem": _stem(image.path),
        "name": image.path.name,
        "index": index,
        "frame": image.frame or 1,
        "ext": extension,
    }
    _template_fields(template)
    try:
        name = template.format_map(values)
        os.fsencode(name)
    except (KeyError, ValueError) as error:
        raise InputError(f"{template!r} is no template of names: {error}") from error
    if "\0" in name:
        raise InputError(f"no disk takes {name!r}, made from {template!r}")
    path = Path(os.path.normpath(name))
    if path.anchor or path.drive or ".." in path.parts or not path.name:
        raise InputError(f"{name!r}, made from {template!r}, does not lie in the folder of results")
    return path


def _template_fields(template: str) -> set[str]:
    """The fields of a template, each of which is known."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{template!r} is no template of names: {error}") from error
    wide = re.search(r"\d{4}", " ".join(spec or "" for _, _, spec, _ in parts))
    if wide:
        raise InputError(f"{template!r} makes names that no disk takes")
    fields = {field for _, field, _, _ in parts if field is not None}
    if unknown := fields - set(TEMPLATE_FIELDS):
        known, other = ", ".join(TEMPLATE_FIELDS), min(unknown) or "nothing"
        raise InputError(f"a name is made of {known}, not of {other!r}")
    return fields


def _refuse_overwriting(results: dict[Picture, Path]) -> None:
    """Check that no result overwrites a picture or another result, also through links.

    Some disks take names for the same that differ in case, or in how accents are encoded.
    """
    resolved_folders: dict[Path, Path] = {}

    def key_of(path: Path) -> str:  # each folder is resolved once, not for each of its files
        if path.parent not in resolved_folders:
            resolved_folders[path.parent] = resolved(path.parent)
        return _path_key(resolved_folders[path.parent] / path.name)

    files = dict.fromkeys(map(file_of, results))
    pictures = {key_of(file) for file in files}
    pictures |= {_path_key(resolved(file)) for file in files if is_link(file)}
    pictures_by_key: dict[str, Picture] = {}
    for picture, result in results.items():
        key = key_of(result)
        if key in pictures or _is_same_file(file_of(picture), result):
            raise InputError(f"{result} is one of the pictures: choose another --out")
        if key in pictures_by_key:
            earlier = pictures_by_key[key]
            raise InputError(f"{earlier} and {picture} would both be written to {result}")
        pictures_by_key[key] = picture


def _path_key(path: Path) -> str:
    """What two paths have in common that are the same file on this system's usual disks."""
    if sys.platform in ("darwin", "win32"):
        return unicodedata.normalize("NFC", str(path)).casefold()
    return str(path)


def _is_same_file(picture: Path, result: Path) -> bool:
    """Whether a result that exists is its picture, by another name or through a hard link."""
    try:
        return picture.samefile(result)
    except (OSError, ValueError):  # one of them does not exist, or no disk could hold its name
        return False
