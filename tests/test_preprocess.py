from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.transform import resize as skimage_resize

import u2export.images.preprocess as preprocess_module
from u2export.core.enums import Resize
from u2export.core.models import PictureSpec
from u2export.errors import InputError
from u2export.images.compose import cut_out
from u2export.images.decode import composite_on_white, open_image, to_upright
from u2export.images.postprocess import postprocess, stretch_saliency
from u2export.images.preprocess import _row_pairs, preprocess, resize_bilinear, resize_square

SPEC = PictureSpec()
RED = (200, 0, 0)


def test_red_picture_matches_the_published_constants():
    # (1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0 - 0.406) / 0.225
    x = preprocess(Image.new("RGB", (7, 5), RED), SPEC)
    assert (x.shape, x.dtype) == ((1, 3, 320, 320), np.float32)
    np.testing.assert_allclose(x[0, :, 16, 16], [2.248908, -2.035714, -1.804444], rtol=1e-6)


def test_black_picture_stays_zero_before_normalisation():
    # (0 - 0.485) / 0.229, ...
    x = preprocess(Image.new("RGB", (3, 3)), SPEC)
    np.testing.assert_allclose(x[0, :, 0, 0], [-2.117904, -2.035714, -1.804444], rtol=1e-6)


@pytest.mark.parametrize("size", [(64, 48), (801, 603), (320, 320), (1, 1), (1, 9), (9, 1)])
def test_plain_resize_is_scikit_images_without_anti_aliasing(size: tuple[int, int]):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    ours = resize_bilinear(pixels, 96, 64)
    theirs = skimage_resize(
        pixels, (96, 64), order=1, mode="edge", anti_aliasing=False, preserve_range=True
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("height", [255, 256, 1001])
def test_of_a_tall_picture_only_the_rows_that_are_needed_are_taken(height: int, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (height, 40, 3), dtype=np.uint8)
    picture, taken = Image.fromarray(pixels), []
    monkeypatch.setattr(
        preprocess_module,
        "_row_pairs",
        lambda *given, real=_row_pairs: taken.append(given) or real(*given),
    )
    ours = resize_square(picture, PictureSpec(size=32))
    theirs = skimage_resize(
        pixels, (32, 32), order=1, mode="edge", anti_aliasing=False, preserve_range=True
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert len(taken) == (height >= 256)
    np.testing.assert_array_equal(ours, resize_bilinear(pixels, 32, 32))


@pytest.mark.parametrize(
    ("resize", "filter_"),
    [
        (Resize.BILINEAR, Image.Resampling.BILINEAR),
        (Resize.BICUBIC, Image.Resampling.BICUBIC),
        (Resize.LANCZOS, Image.Resampling.LANCZOS),
    ],
)
def test_named_filters_are_pillows(resize: Resize, filter_: Image.Resampling):
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8))
    x = preprocess(picture, PictureSpec(size=32, resize=resize))
    expected = np.asarray(picture.resize((32, 32), filter_)).astype(np.float64)
    expected = (expected / expected.max() - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(x[0].transpose(1, 2, 0), expected, atol=1e-5)


def test_the_largest_value_is_the_resized_pictures_own():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[...] = 100
    x = preprocess(Image.fromarray(pixels), PictureSpec(size=32))
    np.testing.assert_allclose(x[0, 0], (1 - 0.485) / 0.229, rtol=1e-6)


def test_stretch_spans_zero_to_one():
    saliency = np.linspace(0.2, 0.6, 12, dtype=np.float32).reshape(3, 4)
    mask = stretch_saliency(saliency, SPEC)
    np.testing.assert_allclose(mask, np.linspace(0, 1, 12).reshape(3, 4), atol=1e-6)


def test_an_inverted_model_gives_one_minus_the_output():
    saliency = np.array([[0.2, 0.6]], np.float32)
    mask = stretch_saliency(saliency, PictureSpec(inverted=True))
    np.testing.assert_allclose(mask, [[1, 0]], atol=1e-6)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_flat_map_gives_an_empty_mask(value: float, inverted: bool):
    flat = np.full((4, 4), value, np.float32)
    assert not stretch_saliency(flat, PictureSpec(inverted=inverted)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_refused(bad: float):
    saliency = np.zeros((4, 4), np.float32)
    saliency[1, 1] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        stretch_saliency(saliency, SPEC)


def test_the_mask_comes_back_to_the_pictures_size_and_rounds():
    saliency = np.zeros((320, 320), np.float32)
    saliency[:, 160:] = 1
    mask = postprocess(saliency, (30, 50), SPEC)
    assert (mask.mode, mask.size) == ("L", (30, 50))
    assert mask.getpixel((2, 25)) == 0
    assert mask.getpixel((27, 25)) == 255
    # a map of 0, 0.5 and 1 gives round(127.5) = 128 in the middle
    three = np.array([[0, 0.5, 1]], np.float32)
    assert postprocess(three, (3, 1), SPEC).getpixel((1, 0)) == 128


def _png(image: Image.Image, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    buffer.seek(0)
    return buffer


def _opened(image: Image.Image, fmt: str = "PNG", **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    buffer.seek(0)
    return composite_on_white(open_image(buffer))


@pytest.mark.parametrize(
    ("stored", "fmt", "expected"),
    [
        (Image.new("L", (2, 2), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (2, 2), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (2, 2), RED).convert("P", palette=Image.Palette.ADAPTIVE), "PNG", RED),
        (Image.new("LA", (2, 2), (77, 255)), "PNG", (77, 77, 77)),
        (Image.new("LA", (2, 2), (77, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (*RED, 255)), "PNG", RED),
        (Image.new("RGBA", (2, 2), (*RED, 0)), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 55)), "TIFF", RED),
        # 16-bit: 200 x 257 = 51400
        (Image.fromarray(np.full((2, 2), 51400, np.uint16)), "PNG", (200, 200, 200)),
        (Image.fromarray(np.full((2, 2), 51400, np.int32)), "TIFF", (200, 200, 200)),
        # wider integers: by the largest value
        (Image.fromarray(np.array([[1_000_000, 200_000]], np.int32)), "TIFF", (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF", (128, 128, 128)),
        (Image.fromarray(np.full((2, 2), 200, np.float32)), "TIFF", (200, 200, 200)),
        (Image.fromarray(np.full((2, 2), 51400, np.float32)), "TIFF", (200, 200, 200)),
        (Image.fromarray(np.full((2, 2), -3, np.float32)), "TIFF", (0, 0, 0)),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF", (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb_by_the_written_rule(
    stored: Image.Image, fmt: str, expected: tuple[int, int, int]
):
    found = _opened(stored, fmt)
    assert found.mode == "RGB"
    np.testing.assert_allclose(found.getpixel((0, 0)), expected, atol=1)


def test_an_upright_copy_leaves_the_given_picture_as_it_was():
    image = Image.new("RGB", (3, 2), "red")
    image.getexif()[0x0112] = 6
    found = to_upright(image)
    assert (image.size, found.size) == ((3, 2), (2, 3))
    plain = Image.new("RGB", (2, 2), "red")
    to_upright(plain).putpixel((0, 0), (0, 0, 255))
    assert plain.getpixel((0, 0)) == (255, 0, 0)


def test_orientation_from_exif_is_applied():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    found = _opened(image, exif=exif)
    assert found.size == (2, 4)
    assert found.getpixel((1, 0)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (3, 3), c) for c in ((0, 0, 255), RED)]
    found = _opened(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert found.getpixel((1, 1)) == (0, 0, 255)


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded():
    with pytest.raises(InputError, match=r"0\.0 million pixels.*raise --max-pixels"):
        open_image(_png(Image.new("L", (20, 20))), max_pixels=399)
    assert open_image(_png(Image.new("L", (20, 20))), max_pixels=400).size == (20, 20)


def test_a_picture_over_pillows_own_limit_is_taken_when_asked_for(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    picture = open_image(_png(Image.new("L", (20, 20))))
    assert picture.size == (20, 20)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_broken_pictures_are_named(tmp_path: Path):
    whole = _png(Image.effect_noise((64, 64), 50)).getvalue()
    for name, content in {
        "text.png": b"no picture",
        "empty.png": b"",
        "cut.png": whole[:900],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read as a picture"):
            open_image(path)
    with pytest.raises(InputError, match="there is no picture at"):
        open_image(tmp_path / "absent.png")


def test_a_cut_out_keeps_colours_and_multiplies_transparencies():
    picture = Image.new("RGBA", (2, 1), (*RED, 128))
    mask = Image.new("L", (2, 1), 255)
    mask.putpixel((1, 0), 51)
    cut = cut_out(picture, mask)
    # 128 x 255 / 255 = 128, 128 x 51 / 255 = 25.6
    assert [cut.getpixel((i, 0)) for i in (0, 1)] == [(*RED, 128), (*RED, 26)]
    assert cut_out(Image.new("RGB", (2, 1), RED), mask).getpixel((1, 0)) == (*RED, 51)
