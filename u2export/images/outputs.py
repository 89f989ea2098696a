"""Where results go: one path for each picture, never over a picture."""

from __future__ import annotations

import itertools
import os
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from u2export.core.enums import Format
from u2export.errors import InputError
from u2export.images.inputs import STDIO, InputImage, find_images, watch_folders
from u2export.system.documents import is_folder, is_link, is_there
from u2export.system.files import remove_partials, resolved

TEMPLATE_FIELDS = ("folder", "stem", "name", "index", "ext")


@dataclass(frozen=True)
class OutputPaths:
    """Which pictures to process, and where their results go.

    For a single picture, `out` may be a file, whose name ends in the format's suffix. Otherwise
    `out` is a folder. Its subfolders are those of the folder that was searched. A result has the
    picture's name: `name.png`, or `name.jpg.png` where two pictures would share that name.

    Attributes:
        out: a file or `-` for one picture; or a folder.
        extension: of the results, without the dot.
        template: of the results' names below `out`, such as `{folder}/{stem}-mask.{ext}`.
        recursive: search subfolders too.
        skip_existing: skip pictures whose result exists.
    """

    out: Path
    extension: str = "png"
    template: str | None = None
    recursive: bool = False
    skip_existing: bool = False

    def targets(self, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
        """Pair the pictures that paths name with their results.

        Raises:
            InputError: there are no pictures; several pictures have one output file, or one result;
                a result would overwrite a picture, or lie outside `out`; the template has an
                unknown field.
        """
        images = find_images(paths, recursive=self.recursive, exclude=self.out)
        results = choose_output_paths(images, self.out, self.extension, self.template)
        return self._without_existing(results)

    def watch(self, paths: Sequence[Path]) -> Iterator[list[tuple[Path, Path]]]:
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
        results: dict[Path, Path] = {}
        used: set[Path] = set()
        scans = watch_folders(paths, recursive=self.recursive, exclude=self.out)
        for scan, images in enumerate(scans):
            for image in images:
                if image.path not in results:
                    result = self._unused_path(image, len(results), used)
                    results[image.path] = result
                    used.add(result)
            settled = {image.path: results[image.path] for image in images}
            # scan 0 only records states: scan 1 reports the pictures that were there at the start
            yield self._without_existing(settled) if scan == 1 else list(settled.items())

    def _unused_path(self, image: InputImage, index: int, used: Collection[Path]) -> Path:
        """The first candidate for a result's path that no earlier picture has."""
        if self.template is not None:
            usual = self.out / _name_from_template(self.template, image, index, self.extension)
        else:
            usual = self.out / image.folder / f"{_stem(image.path)}.{self.extension}"
        longer = usual.with_name(f"{image.path.name}.{self.extension}")
        numbered = (
            usual.with_name(f"{image.path.name}.{number}.{self.extension}")
            for number in itertools.count(2)
        )
        candidates = itertools.chain([usual, longer], numbered)
        return next(candidate for candidate in candidates if candidate not in used)

    def _without_existing(self, results: dict[Path, Path]) -> list[tuple[Path, Path]]:
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
) -> dict[Path, Path]:
    """Choose the path of each picture's result, by the rules of `OutputPaths`.

    Returns:
        The result's path by the picture's path.

    Raises:
        InputError: as for `OutputPaths.targets`.
    """
    is_file = template is None and not is_folder(out) and _format_suffix(out) == extension
    if out == STDIO or is_file:
        if len(images) != 1:
            raise InputError(f"{len(images)} pictures do not fit into the one file {out}")
        results = {images[0].path: out}
    elif template is not None:
        results = {
            image.path: out / _name_from_template(template, image, index, extension)
            for index, image in enumerate(images)
        }
    else:
        counts = Counter((image.folder, image.path.stem) for image in images)
        results = {
            image.path: out / image.folder / f"{_unique_stem(image, counts)}.{extension}"
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
    """The picture's stem; its name with the suffix, where pictures of a folder share the stem."""
    is_unique = counts[image.folder, image.path.stem] == 1
    return _stem(image.path) if is_unique else image.path.name


def _stem(path: Path) -> str:
    return "picture" if path == STDIO else path.stem


def _name_from_template(template: str, image: InputImage, index: int, extension: str) -> Path:
    """Fill a template in; the result lies below the output folder."""
    values = {
        "folder": image.folder.as_posix(),
        "stem": _stem(image.path),
        "name": image.path.name,
        "index": index,
        "ext": extension,
    }
    try:
        _check_template_fields(template)
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


def _check_template_fields(template: str) -> None:
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    if unknown := fields - set(TEMPLATE_FIELDS):
        known, other = ", ".join(TEMPLATE_FIELDS), min(unknown) or "nothing"
        raise InputError(f"a name is made of {known}, not of {other!r}")


def _refuse_overwriting(results: dict[Path, Path]) -> None:
    """Check that no result overwrites a picture or another result, also through links.

    Some disks take names for the same that differ in case, or in how accents are encoded.
    """
    resolved_folders: dict[Path, Path] = {}

    def key_of(path: Path) -> str:  # each folder is resolved once, not for each of its files
        if path.parent not in resolved_folders:
            resolved_folders[path.parent] = resolved(path.parent)
        return _path_key(resolved_folders[path.parent] / path.name)

    pictures = {key_of(picture) for picture in results}
    pictures |= {_path_key(resolved(picture)) for picture in results if is_link(picture)}
    pictures_by_key: dict[str, Path] = {}
    for picture, result in results.items():
        key = key_of(result)
        if key in pictures or _is_same_file(picture, result):
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
