"""Pictures of phones, written by pillow-heif: what we open is the picture, upright, and once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from u2export.errors import InputError
from u2export.images.decode import open_image, read_header
from u2export.images.frames import count_frames
from u2export.images.synthetic import draw_image

pillow_heif = pytest.importorskip("pillow_heif", reason="pip install pillow-heif")
MEAN_ERROR = 3.0  # of 255; colours are stored at half the resolution: 2.3 at quality 95
ORIENTATION = 0x0112  # EXIF's tag


@pytest.fixture(scope="module")
def drawn() -> Image.Image:
    return draw_image(1_000_310, (200, 136)).picture.convert("RGB")


@pytest.fixture(scope="module")
def faded(drawn: Image.Image) -> Image.Image:
    faded = drawn.convert("RGBA")
    faded.putalpha(Image.radial_gradient("L").resize(drawn.size))
    return faded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pillow_heif.register_heif_opener()
    return tmp_path / "picture.heic"


def _assert_shows(path: Path, expected: Image.Image) -> None:
    opened = open_image(path)
    assert (opened.mode, opened.size) == (expected.mode, expected.size)
    assert np.abs(np.asarray(opened, int) - np.asarray(expected, int)).mean() < MEAN_ERROR


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_turned_once(orientation: int, drawn: Image.Image, path: Path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    drawn.save(path, quality=95, exif=exif.tobytes())  # pillow-heif writes the turn beside it
    turned = io.BytesIO()
    drawn.save(turned, "PNG", exif=exif.tobytes())
    _assert_shows(path, ImageOps.exif_transpose(Image.open(turned)).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_8_bits_with_and_without_alpha(mode: str, faded: Image.Image, path: Path):
    faded.convert(mode).save(path, quality=95)
    expected = faded.convert(mode).convert("RGBA" if "A" in mode else "RGB")
    _assert_shows(path, expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_10_bits(mode: str, faded: Image.Image, path: Path):
    pixels = np.asarray(faded.convert(mode), np.uint16) * 257
    file = pillow_heif.from_bytes(mode=f"{mode};16", size=faded.size, data=pixels.tobytes())
    file.save(path, quality=95)
    assert pillow_heif.open_heif(path, convert_hdr_to_8bit=False).info["bit_depth"] == 10
    _assert_shows(path, faded.convert(mode))


@pytest.mark.parametrize("primary", [0, 1])
def test_the_primary_one_of_several_is_opened(primary: int, drawn: Image.Image, path: Path):
    pictures = [drawn, draw_image(1_000_311, (120, 90)).picture.convert("RGB")]
    file = pillow_heif.from_pillow(pictures[0])
    file.add_from_pillow(pictures[1])
    file.save(path, quality=95, primary_index=primary)
    _assert_shows(path, pictures[primary])
    with read_header(path) as header:
        assert count_frames(header) == 2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_one_sentence(share: float, drawn: Image.Image, path: Path):
    drawn.save(path, quality=95)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError) as found:
        open_image(path)
    assert "\n" not in str(found.value)
