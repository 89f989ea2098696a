"""WebP files of ours, read by libwebp, which Pillow has."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from u2export.images import webp
from u2export.images.compose import cut_out
from u2export.images.synthetic import draw_image


def _leaving(wanted: np.ndarray) -> np.ndarray:
    """A row of which the filter leaves these values: each is what it adds to the one before."""
    return np.cumsum(wanted, dtype=np.uint8)[None]


def _runs(lengths: list[int]) -> np.ndarray:
    values = np.resize(np.array([3, 200, 90, 7], np.uint8), len(lengths))
    return _leaving(np.repeat(values, lengths))


def _skewed() -> np.ndarray:
    """Values of which each is twice as frequent as the next: codes of unequal lengths."""
    flat = np.concatenate([np.full(2 ** (13 - i), 11 * i % 256) for i in range(14)])
    return _leaving(np.random.default_rng(3).permutation(flat))


RNG = np.random.default_rng(0)
PLANES = {
    "one pixel": np.full((1, 1), 77, np.uint8),
    "one column": RNG.integers(0, 256, (300, 1), np.uint8),
    "one row": RNG.integers(0, 256, (1, 300), np.uint8),
    "nothing": np.zeros((123, 45), np.uint8),
    "everything": np.full((123, 45), 255, np.uint8),
    "noise": RNG.integers(0, 256, (211, 97), np.uint8),
    "two values": RNG.integers(0, 2, (64, 64), np.uint8) * 255,
    "short runs": _runs([*range(1, 170)]),
    "runs of one repetition": _runs([4096, 4097, 4098, 1]),
    "runs of two repetitions": _runs([8193, 8190]),
    "a run of three repetitions": _runs([1, 12290]),
    "unequal codes": _skewed(),
    "more than a piece": np.tile(RNG.integers(0, 9, (300, 200), np.uint8), (4, 9)),
    "a mask": np.asarray(draw_image(1_000_700, (640, 481)).mask),
}


def _written(alpha: np.ndarray, colours: Image.Image, quality: int = 90, **notes: bytes) -> bytes:
    image = colours.convert("RGB")
    image.putalpha(Image.fromarray(alpha))
    out = io.BytesIO()
    webp.WebpParts(image).write(out, quality=quality, **notes)
    return out.getvalue()


@pytest.mark.parametrize("name", PLANES)
def test_transparency_is_kept_to_the_bit(name: str):
    alpha = PLANES[name]
    colours = Image.effect_noise(alpha.shape[::-1], 50)
    with Image.open(io.BytesIO(_written(alpha, colours))) as found:
        assert (found.mode, found.size) == ("RGBA", alpha.shape[::-1])
        np.testing.assert_array_equal(np.asarray(found.getchannel("A")), alpha)


def test_codes_are_no_deeper_than_the_format_allows_and_waste_nothing():
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = webp._code_lengths(np.array(fibonacci)).astype(float)
    assert lengths.max() == 15  # a tree of these without a limit is 29 deep
    assert np.sum(2.0**-lengths) == 1


@pytest.mark.parametrize("hard", [False, True])
def test_visible_colours_are_as_true_as_libwebps(hard: bool):
    drawn = draw_image(1_000_704, (900, 700))
    mask = drawn.mask.resize((320, 320)).resize((900, 700), Image.Resampling.BILINEAR)
    if hard:
        mask = mask.point([0] * 128 + [255] * 128)
    cut = cut_out(drawn.picture, mask)
    ours, theirs = io.BytesIO(), io.BytesIO()
    webp.WebpParts(cut).write(ours, quality=80)
    cut.save(theirs, "WEBP", quality=80, method=0)
    seen = np.asarray(mask) > 0
    apart = []
    for file in (ours, theirs):
        colours = np.asarray(Image.open(file).convert("RGBA"), float)[..., :3]
        apart.append(np.abs(colours - np.asarray(cut, float)[..., :3])[seen].mean())
    assert apart[0] <= 1.02 * apart[1]
    assert len(ours.getvalue()) <= 1.02 * len(theirs.getvalue())


@pytest.mark.parametrize("quality", [1, 80, 99])
def test_colours_are_those_of_an_opaque_file_of_this_quality(quality: int):
    drawn = draw_image(1_000_701, (320, 241))
    none_hidden = np.maximum(np.asarray(drawn.mask), 1)
    content = _written(none_hidden, drawn.picture, quality)
    opaque = io.BytesIO()
    drawn.picture.save(opaque, "WEBP", quality=quality, method=0)
    with Image.open(io.BytesIO(content)) as found, Image.open(opaque) as expected:
        np.testing.assert_array_equal(
            np.asarray(found.convert("RGB")), np.asarray(expected.convert("RGB"))
        )


def test_a_smooth_mask_takes_no_more_room_than_libwebp_needs():
    drawn = draw_image(1_000_702, (1200, 900))
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
    notes = {"icc_profile": profile, "exif": mark + exif.tobytes().removeprefix(b"Exif\0\0")}
    content = _written(PLANES["noise"], Image.new("RGB", PLANES["noise"].shape[::-1]), **notes)
    assert b"Exif\0\0" not in content  # RFC 9649 has no such mark
    assert int.from_bytes(content[4:8], "little") == len(content) - 8
    with Image.open(io.BytesIO(content)) as found:
        assert found.info["icc_profile"] == profile
        assert found.getexif()[0x013B] == "somebody"


@pytest.mark.parametrize("size", [(1, 1), (17, 65), (130, 63), (2, 3000), (3000, 3)])
@pytest.mark.parametrize("kind", ["hard", "soft", "sparse", "empty"])
def test_hidden_colours_are_the_mean_of_what_is_seen_in_their_block(
    size: tuple[int, int], kind: str
):
    rng = np.random.default_rng(5)
    shape = size[::-1]
    alpha = {
        "hard": 255 * (rng.random(shape) < 0.5),
        "soft": rng.integers(0, 256, shape),
        "sparse": 1 * (rng.random(shape) < 0.01),
        "empty": np.zeros(shape),
    }[kind].astype(np.uint8)
    pixels = np.dstack([rng.integers(0, 256, (*shape, 3), np.uint8), alpha])
    pixels[alpha == 0] = 0
    expected = pixels[..., :3].copy()
    for top in range(0, shape[0], 16):
        for left in range(0, shape[1], 16):
            block = np.s_[top : top + 16, left : left + 16]
            seen = alpha[block] > 0
            if seen.any():
                expected[block][~seen] = expected[block][seen].mean(0)
    image = Image.fromarray(pixels)
    found = webp._fill_hidden_colours(image, image.getchannel("A")).convert("RGB")
    np.testing.assert_array_equal(np.asarray(found), expected)
