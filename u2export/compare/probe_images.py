"""The pictures of a parity check: synthetic ones, the user's, and those that break pipelines."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from u2export.core.requests import MAX_PICTURE_BYTES
from u2export.errors import InputError
from u2export.images.synthetic import draw_image
from u2export.reports.text import printable
from u2export.system.documents import read_bounded

SYNTHETIC_SEEDS = tuple(range(1_000_011, 1_000_019))  # no weights were trained on these
QUICK_SEED_COUNT = 3  # of them, in a quick check
UNFORESEEN_SEED = 1_000_000_000  # the seeds of pictures that follow from the judged files
UNFORESEEN_COUNT, QUICK_UNFORESEEN_COUNT = 8, 2
_SYNTHETIC_SIZE = (400, 300)  # not the network's size, so that both resizes have an effect
_LARGE_SIZE = (8192, 6104)  # 50 million pixels
_NOISE_SEED = 7
_EXIF_ORIENTATION = 0x0112
_ROTATE_90 = 6  # value of the EXIF orientation


@dataclass(frozen=True)
class Case:
    """One picture file of a check.

    Attributes:
        name: in reports.
        kind: `drawn`, `yours` or `degenerate`, in reports.
        read: returns the file's bytes.
    """

    name: str
    kind: str
    read: Callable[[], bytes]


def synthetic_cases(count: int) -> Iterator[Case]:
    """Make synthetic pictures with a clear subject."""
    for seed in SYNTHETIC_SEEDS[:count]:
        yield Case(f"drawn {seed}", "drawn", partial(_synthetic_file, seed))


def unforeseen_cases(digest: str, count: int) -> Iterator[Case]:
    """Make synthetic pictures that nobody knew before the judged files were finished.

    A file could be made right for pictures that are always the same, and wrong for all others.
    These follow from the files' own bytes: the same files get the same pictures, and any change
    of a file gives others. Every second one has the texture of a photograph.

    Args:
        digest: sha256 of the judged files, in hexadecimal.
        count: number of pictures.
    """
    for index in range(count):
        seed = UNFORESEEN_SEED + (int(digest, 16) + index) % UNFORESEEN_SEED
        textured = bool(index % 2)
        name = f"drawn for these files{', textured' if textured else ''} {seed}"
        yield Case(name, "drawn", partial(_unforeseen_file, seed, textured=textured))


def user_cases(paths: Iterable[Path]) -> Iterator[Case]:
    """Use the user's own picture files.

    `Case.read` raises an `InputError` for a file that cannot be read.
    """
    for path in paths:
        yield Case(printable(path.name), "yours", partial(_read_file, path))


def degenerate_cases(*, large: bool) -> Iterator[Case]:
    """Make pictures with which other tools gave NaN, a division by zero, or a wrong mask.

    Args:
        large: include a picture of 50 million pixels.
    """
    for name, draw, file_format in _DEGENERATE:
        yield Case(name, "degenerate", partial(_degenerate_file, draw, file_format))
    yield Case("turned by EXIF", "degenerate", _rotated_by_exif)
    if large:
        yield Case("50 million pixels", "degenerate", partial(_degenerate_file, _large, "PNG"))


def _read_file(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_PICTURE_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=len(SYNTHETIC_SEEDS))
def _synthetic_file(seed: int) -> bytes:
    return _encode(draw_image(seed, _SYNTHETIC_SIZE).picture, "PNG")


@functools.lru_cache(maxsize=16)
def _unforeseen_file(seed: int, *, textured: bool) -> bytes:
    picture = draw_image(seed, _SYNTHETIC_SIZE).picture
    return _encode(_add_texture(picture, seed) if textured else picture, "PNG")


def _add_texture(picture: Image.Image, seed: int) -> Image.Image:
    """Add noise whose amplitude falls with the frequency, as it does in photographs.

    Source:
        D. J. Field, Relations between the statistics of natural images and the response
        properties of cortical cells, 1987: the amplitude falls as one over the frequency.
    """
    rng = np.random.default_rng(seed)
    width, height = picture.size
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequencies[0, 0] = np.inf  # no change of the mean
    white = np.fft.rfft2(rng.standard_normal((height, width)))
    texture = np.fft.irfft2(white / frequencies, s=(height, width))
    texture *= rng.uniform(10, 30) / texture.std()
    pixels = np.asarray(picture) + texture[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@functools.lru_cache(maxsize=64)
def _degenerate_file(draw: Callable[[], Image.Image], file_format: str) -> bytes:
    return _encode(draw(), file_format)


def _encode(picture: Image.Image, file_format: str) -> bytes:
    file = io.BytesIO()
    if file_format == "JPEG":
        picture.save(file, file_format, quality=95)
    else:
        picture.save(file, file_format, compress_level=1)
    return file.getvalue()


def _rotated_by_exif() -> bytes:
    picture = _subject().transpose(Image.Transpose.ROTATE_90)
    exif = picture.getexif()
    exif[_EXIF_ORIENTATION] = _ROTATE_90
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def _subject() -> Image.Image:
    return draw_image(SYNTHETIC_SEEDS[0], _SYNTHETIC_SIZE).picture


def _transparent() -> Image.Image:
    picture, mask = draw_image(SYNTHETIC_SEEDS[1], _SYNTHETIC_SIZE)
    picture.putalpha(mask)
    return picture


def _dim() -> Image.Image:
    """No pixel is bright, so division by 255 and by the largest value differ."""
    return _subject().point(lambda value: value * 0.4)


def _noise() -> Image.Image:
    values = np.random.default_rng(_NOISE_SEED).integers(0, 256, (300, 400, 3), np.uint8)
    return Image.fromarray(values)


def _checkerboard() -> Image.Image:
    rows, columns = np.indices((300, 400)) // 25
    return Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8))


def _subject_at_border() -> Image.Image:
    pixels = np.full((300, 400, 3), 230, np.uint8)
    pixels[120:, :180] = (30, 60, 160)
    return Image.fromarray(pixels)


def _no_subject() -> Image.Image:
    return draw_image(SYNTHETIC_SEEDS[3], _SYNTHETIC_SIZE, subjects=0).picture


def _sixteen_bits() -> Image.Image:
    gray = np.asarray(_subject().convert("L"), np.uint16)
    return Image.fromarray(gray * 257)


def _large() -> Image.Image:
    picture = draw_image(SYNTHETIC_SEEDS[2], (512, 382)).picture
    return picture.resize(_LARGE_SIZE, Image.Resampling.NEAREST)


# Name in reports, drawing function and file format.
_DEGENERATE: tuple[tuple[str, Callable[[], Image.Image], str], ...] = (
    ("black", lambda: Image.new("RGB", _SYNTHETIC_SIZE), "PNG"),
    ("white", lambda: Image.new("RGB", _SYNTHETIC_SIZE, (255, 255, 255)), "PNG"),
    ("one colour", lambda: Image.new("RGB", _SYNTHETIC_SIZE, (30, 144, 70)), "PNG"),
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
    ("subject at the border", _subject_at_border, "PNG"),
    ("no subject", _no_subject, "PNG"),
)
