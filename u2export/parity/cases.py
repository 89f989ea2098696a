"""The pictures a check runs on: drawn ones, the user's, and the ones that break pipelines."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from u2export.drawn import draw
from u2export.errors import InputError
from u2export.parity.words import printable

# Seeds of drawn pictures that no weights were trained on.
SEEDS = tuple(range(1_000_011, 1_000_019))
QUICK = 3  # of them, in a quick check
SIZE = (400, 300)  # not the network's, so that both resizes have something to do
LARGE = (8192, 6104)  # 50 million pixels
NOISE_SEED = 7
ORIENTATION = 0x0112  # the EXIF tag
ROTATED = 6  # its value for a picture to be turned by 90 degrees


@dataclass(frozen=True)
class Case:
    """One picture file.

    Attributes:
        name: in reports.
        kind: `drawn`, `yours` or `degenerate`.
        read: gives the file's bytes.
    """

    name: str
    kind: str
    read: Callable[[], bytes]


def drawn(count: int) -> Iterator[Case]:
    """Drawn pictures with a clear subject."""
    for seed in SEEDS[:count]:
        yield Case(f"drawn {seed}", "drawn", partial(_drawing, seed))


def yours(paths: Iterable[Path]) -> Iterator[Case]:
    """The user's own picture files.

    Raises:
        InputError: when one is read and cannot be.
    """
    for path in paths:
        yield Case(printable(path.name), "yours", partial(_bytes, path))


def degenerate(*, large: bool) -> Iterator[Case]:
    """Pictures that gave other tools NaN, a division by zero, or a wrong mask.

    Args:
        large: the one of 50 million pixels as well.
    """
    for name, make, form in _DEGENERATE:
        yield Case(name, "degenerate", partial(_made, make, form))
    yield Case("turned by EXIF", "degenerate", _turned)
    if large:
        yield Case("50 million pixels", "degenerate", partial(_made, _large, "PNG"))


@functools.lru_cache(maxsize=len(SEEDS))
def _drawing(seed: int) -> bytes:
    return _encoded(draw(seed, SIZE).picture, "PNG")


@functools.lru_cache(maxsize=64)
def _made(make: Callable[[], Image.Image], form: str) -> bytes:
    return _encoded(make(), form)


def _subject() -> Image.Image:
    return draw(SEEDS[0], SIZE).picture


def _transparent() -> Image.Image:
    picture, mask = draw(SEEDS[1], SIZE)
    picture.putalpha(mask)
    return picture


def _dim() -> Image.Image:
    """Nothing in it is bright: division by 255 and by its largest value are not the same."""
    return _subject().point(lambda value: value * 0.4)


def _noise() -> Image.Image:
    values = np.random.default_rng(NOISE_SEED).integers(0, 256, (300, 400, 3), np.uint8)
    return Image.fromarray(values)


def _checkerboard() -> Image.Image:
    rows, columns = np.indices((300, 400)) // 25
    return Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8))


def _at_the_border() -> Image.Image:
    values = np.full((300, 400, 3), 230, np.uint8)
    values[120:, :180] = (30, 60, 160)
    return Image.fromarray(values)


def _sixteen_bits() -> Image.Image:
    gray = np.asarray(_subject().convert("L"), np.uint16)
    return Image.fromarray(gray * 257)


def _large() -> Image.Image:
    return draw(SEEDS[2], (512, 382)).picture.resize(LARGE, Image.Resampling.NEAREST)


_DEGENERATE: tuple[tuple[str, Callable[[], Image.Image], str], ...] = (
    ("black", lambda: Image.new("RGB", SIZE), "PNG"),
    ("white", lambda: Image.new("RGB", SIZE, (255, 255, 255)), "PNG"),
    ("one colour", lambda: Image.new("RGB", SIZE, (30, 144, 70)), "PNG"),
    ("1x1", lambda: Image.new("RGB", (1, 1), (200, 100, 50)), "PNG"),
    ("1xN", lambda: _subject().resize((1, 300)), "PNG"),
    ("Nx1", lambda: _subject().resize((400, 1)), "PNG"),
    ("gray", lambda: _subject().convert("L"), "JPEG"),
    ("gray and alpha", lambda: _transparent().convert("LA"), "PNG"),
    ("transparent ground", _transparent, "PNG"),
    ("palette", lambda: _subject().quantize(64), "PNG"),
    ("CMYK", lambda: _subject().convert("CMYK"), "JPEG"),
    ("16 bits", _sixteen_bits, "PNG"),
    ("dim", _dim, "PNG"),
    ("noise", _noise, "PNG"),
    ("checkerboard", _checkerboard, "PNG"),
    ("subject at the border", _at_the_border, "PNG"),
    ("no subject", lambda: draw(SEEDS[3], SIZE, subjects=0).picture, "PNG"),
)


def _turned() -> bytes:
    picture = _subject().transpose(Image.Transpose.ROTATE_90)
    exif = picture.getexif()
    exif[ORIENTATION] = ROTATED
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


def _encoded(picture: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    if form == "JPEG":
        picture.save(out, form, quality=95)
    else:
        picture.save(out, form, compress_level=1)
    return out.getvalue()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
