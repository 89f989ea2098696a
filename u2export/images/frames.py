"""Files of several pictures: the frames of an animation, the pages of a TIFF."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile

from u2export.core.requests import MAX_PIXELS
from u2export.errors import InputError
from u2export.images.decode import check_size, open_header, translate_errors
from u2export.images.formats import FORMATS_OF_SEVERAL

MAX_FRAMES = 1000  # of a file that results are made of
MAX_COUNTED_PAGES = 100  # for a note; each page of a TIFF costs a search
# Pixels that are decoded to reach a frame: the thousandth of a film in Full HD still counts.
MAX_PIXELS_BEFORE = 2_100_000_000
_IN_TURN = frozenset({"AVIF", "GIF", "PNG", "WEBP"})  # a frame is drawn over those before it
_DRAWN_BY_SEEKING = frozenset({"GIF", "PNG"})  # the others wait for the pixels to be asked for


@dataclass(frozen=True)
class Frame:
    """One of several pictures in a file.

    Attributes:
        path: of the file.
        number: its place in the file, from 1.
    """

    path: Path
    number: int

    def __str__(self) -> str:
        """Its number and the file's path."""
        return frame_name(self.path, self.number)


Picture = Path | Frame  # the first or only one of a file, or any of several


def frame_name(file: Path | str, number: int | None) -> str:
    """What messages call a picture; `number` is None where it is its file's only one."""
    return str(file) if number is None else f"frame {number} of {file}"


def file_of(picture: Picture) -> Path:
    """The path of the file that a picture lies in."""
    return picture.path if isinstance(picture, Frame) else picture


def frames_of(path: Path) -> list[Frame]:
    """List the pictures of a file that holds several.

    The first one over `MAX_FRAMES` is listed too, and so is the first damaged one. Reading it
    tells what is wrong.

    Returns:
        Nothing where the file holds one picture, or cannot be read.
    """
    try:
        with translate_errors(str(path)), open_header(path) as header:
            count = min(count_frames(header, MAX_FRAMES + 1), MAX_FRAMES + 1)
    except InputError:  # reading it will tell
        return []
    return [Frame(path, number) for number in range(1, count + 1)] if count > 1 else []


def count_frames(header: Image.Image, most_pages: int = MAX_COUNTED_PAGES) -> int:
    """How many pictures a file holds, such as frames of an animation or pages.

    A camera's preview beside the picture does not count. The first damaged picture does, but
    nothing after it.

    Args:
        header: from `read_header`.
        most_pages: of a TIFF, whose pages Pillow finds one after another. No more are counted.
    """
    if header.format not in FORMATS_OF_SEVERAL:
        return 1
    try:
        is_tiff = header.format == "TIFF"
        return _count_pages(header, most_pages) if is_tiff else header.n_frames  # type: ignore[attr-defined]  # of the formats' own classes
    except Exception:  # of the next one: reading it will tell
        return header.tell() + 2
    finally:
        with contextlib.suppress(Exception):  # likewise
            header.seek(0)


def _count_pages(header: Image.Image, most: int) -> int:
    for count in range(1, most):
        try:
            header.seek(count)
        except EOFError:
            return count
        except Exception:  # of the next one: reading it will tell
            return count + 1
    return most


def read_frame_header(
    source: Path | BinaryIO, number: int, *, max_pixels: int = MAX_PIXELS
) -> ImageFile.ImageFile:
    """Read the header of one of several pictures; `draw_frames_before` comes before its pixels.

    Args:
        source: a path, or an open binary file.
        number: of the picture, from 1.
        max_pixels: larger pictures are refused.

    Raises:
        InputError: the file is absent, no picture, or has no such picture; it is too large, or
            too far behind.
    """
    header = open_header(source)
    name = str(header.filename)
    with ExitStack() as on_failure:
        on_failure.callback(header.close)
        if number > MAX_FRAMES:
            raise InputError(f"{name} holds more than {MAX_FRAMES} frames: the rest is left out")
        header.filename = name = frame_name(name, number)
        if header.format not in _DRAWN_BY_SEEKING:
            with translate_errors(name):
                header.seek(number - 1)
        check_size(header, max_pixels)
        if header.format in _IN_TURN:
            _check_distance(header, number)
        on_failure.pop_all()
    return header


def _check_distance(header: ImageFile.ImageFile, number: int) -> None:
    before = (number - 1) * header.width * header.height
    if before > MAX_PIXELS_BEFORE:
        raise InputError(
            f"{header.filename!s} has {before / 1e6:.0f} million pixels before it, more than the "
            f"{MAX_PIXELS_BEFORE / 1e6:.0f} million that are decoded to reach a frame"
        )


def draw_frames_before(header: ImageFile.ImageFile, number: int) -> None:
    """Draw the frames that one is drawn over, where its format needs that; not the frame itself.

    Args:
        header: from `read_frame_header`.
        number: of the picture, from 1.

    Raises:
        InputError: one of these frames is damaged, or outgrows its GIF.
    """
    if header.format not in _DRAWN_BY_SEEKING:
        return
    screen = header.size
    with ExitStack() as on_failure, translate_errors(str(header.filename)):
        on_failure.callback(header.close)
        for index in range(1, number):
            header.seek(index)
            if header.size != screen:  # the size was checked, and memory for it was set aside
                width, height = screen
                raise InputError(f"frame {index + 1} outgrows the file's {width}x{height} pixels")
        on_failure.pop_all()
