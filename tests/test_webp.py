"""WebP files of ours, read by libwebp, which Pillow has."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from u2export import webp
from u2export.drawn import draw
from u2export.pipeline import cut_out


def _runs() -> np.ndarray:
    """Runs of every length to 300, and of some around the most that can be told at once."""
    lengths = [*range(1, 301), 4095, 4096, 4097, 4098, 8192, 8193, 20000]
    values = np.resize(np.array([3, 200, 90, 7], np.uint8), len(lengths))
    flat = np.repeat(values, lengths)
    return np.resize(flat, (len(flat) // 250 + 1, 250))


def _skewed() -> np.ndarray:
    """Values of which each is twice as frequent as the next: codes as deep as any."""
    flat = np.concatenate([np.full(2 ** max(0, 17 - i), 11 * i % 256) for i in range(22)])
    np.random.default_rng(3).shuffle(flat)
    return np.resize(flat, (512, 513)).astype(np.uint8)


RNG = np.random.default_rng(0)
PLANES = {
    "one pixel": np.full((1, 1), 77, np.uint8),
    "one column": RNG.integers(0, 256, (300, 1), np.uint8),
    "one row": RNG.integers(0, 256, (1, 300), np.uint8),
    "nothing": np.zeros((123, 45), np.uint8),
    "everything": np.full((123, 45), 255, np.uint8),
    "noise": RNG.integers(0, 256, (211, 97), np.uint8),
    "two values": RNG.integers(0, 2, (64, 64), np.uint8) * 255,
    "runs": _runs(),
    "deep codes": _skewed(),
    "a mask": np.asarray(draw(1_000_700, (640, 481)).mask),
}


def _written(alpha: np.ndarray, colours: Image.Image, quality: int = 90, **notes: bytes) -> bytes:
    image = colours.convert("RGB")
    image.putalpha(Image.fromarray(alpha))
    out = io.BytesIO()
    webp.write(image, out, quality=quality, **notes)
    return out.getvalue()


@pytest.mark.parametrize("name", PLANES)
def test_transparency_is_kept_to_the_bit(name: str):
    alpha = PLANES[name]
    colours = Image.effect_noise(alpha.shape[::-1], 50)
    with Image.open(io.BytesIO(_written(alpha, colours))) as found:
        assert (found.mode, found.size) == ("RGBA", alpha.shape[::-1])
        np.testing.assert_array_equal(np.asarray(found.getchannel("A")), alpha)


@pytest.mark.parametrize("quality", [1, 80, 99])
def test_colours_are_those_of_an_opaque_file_of_this_quality(quality: int):
    drawn = draw(1_000_701, (320, 241))
    content = _written(np.asarray(drawn.mask), drawn.picture, quality)
    opaque = io.BytesIO()
    drawn.picture.save(opaque, "WEBP", quality=quality, method=0)
    with Image.open(io.BytesIO(content)) as found, Image.open(opaque) as expected:
        np.testing.assert_array_equal(
            np.asarray(found.convert("RGB")), np.asarray(expected.convert("RGB"))
        )


def test_a_smooth_mask_takes_no_more_room_than_libwebp_needs():
    drawn = draw(1_000_702, (1200, 900))
    mask = drawn.mask.resize((320, 320)).resize((1200, 900), Image.Resampling.BILINEAR)
    image = cut_out(drawn.picture, mask)
    theirs = io.BytesIO()
    image.save(theirs, "WEBP", quality=90, method=0)
    assert len(_written(np.asarray(mask), image)) <= len(theirs.getvalue())


@pytest.mark.parametrize("mark", [b"", b"Exif\0\0"])
def test_profile_and_exif_are_in_the_file(mark: bytes):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:-1]  # odd or even
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    notes = {"profile": profile, "exif": mark + exif.tobytes().removeprefix(b"Exif\0\0")}
    content = _written(PLANES["noise"], Image.new("RGB", PLANES["noise"].shape[::-1]), **notes)
    assert b"Exif\0\0" not in content  # RFC 9649 has no such mark
    assert int.from_bytes(content[4:8], "little") == len(content) - 8
    with Image.open(io.BytesIO(content)) as found:
        assert found.info["icc_profile"] == profile
        assert found.getexif()[0x013B] == "somebody"
