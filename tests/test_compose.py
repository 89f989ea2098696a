"""From a map to a mask, a cut-out, a subject on another ground; and how they are written."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from u2export.compare.metrics import boundary_f
from u2export.core.enums import Format, Refine
from u2export.errors import DependencyError, InputError, OutputError
from u2export.images import encode, refine
from u2export.images.compose import Composition, compose, parse_background, remove_specks
from u2export.images.decode import open_image
from u2export.images.encode import PNG_DEFAULT, Encoding
from u2export.images.postprocess import resize_to_mask
from u2export.images.synthetic import draw_image
from u2export.system.files import partial_path

RED, BLUE = (200, 30, 30), (20, 40, 220)
LEFT = np.tile(np.float32([1, 1, 1, 1, 0, 0, 0, 0]), (8, 1))  # the left half is subject


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_a_threshold_takes_what_reaches_it():
    saliency = np.float32([[0.0, 0.49, 0.5, 1.0]])
    mask = compose(saliency, (4, 1), Composition(threshold=0.5))
    assert _pixels(mask).tolist() == [[0, 0, 255, 255]]  # 0.49 x 255 = 125, 0.5 x 255 = 128


def test_feathering_blurs_the_edge_and_nothing_else():
    saliency = np.repeat(LEFT, 10, axis=1)  # 80 wide
    mask = _pixels(compose(saliency, (80, 8), Composition(feather=3)))[4]
    assert mask[:25].min() == 255
    assert mask[55:].max() == 0
    assert 100 < int(mask[39]) < 160
    assert (np.diff(mask.astype(int)) <= 0).all()
    # a Gaussian of 3 pixels: 16 % is left one standard deviation beyond the edge
    assert abs(mask[42] / 255 - 0.16) < 0.06


def test_a_cut_out_is_clear_where_nothing_is_seen():
    cut = compose(LEFT, (8, 8), Composition(cutout=True), Image.new("RGB", (8, 8), RED))
    assert cut.mode == "RGBA"
    assert cut.getpixel((0, 0)) == (*RED, 255)
    assert cut.getpixel((7, 0)) == (0, 0, 0, 0)


@pytest.mark.parametrize("ground", [BLUE, Image.new("RGB", (3, 5), BLUE)], ids=["colour", "file"])
def test_a_subject_stands_on_another_ground(ground):
    half = np.full((1, 2), 0.5, np.float32)
    half[0, 0] = 1
    wanted = Composition(background=ground)
    found = compose(half, (2, 1), wanted, Image.new("RGB", (2, 1), RED))
    assert (found.mode, found.getpixel((0, 0))) == ("RGB", RED)
    # 128/255 of red and 127/255 of blue
    assert found.getpixel((1, 0)) == pytest.approx((110, 35, 125), abs=1)


def test_a_background_is_a_colour_or_a_file(tmp_path: Path):
    assert parse_background("#336699") == (0x33, 0x66, 0x99)
    assert parse_background("white") == (255, 255, 255)
    Image.new("RGB", (2, 2), BLUE).save(tmp_path / "b.png")
    assert parse_background(str(tmp_path / "b.png")).getpixel((0, 0)) == BLUE
    with pytest.raises(InputError, match="neither a colour, such as"):
        parse_background("nowhere.png")


def test_small_islands_go_and_small_holes_are_filled():
    saliency = np.zeros((100, 100), np.float32)
    saliency[10:60, 10:60] = 0.9  # the subject
    saliency[30:34, 30:34] = 0  # a small hole
    saliency[80:84, 80:84] = 0.9  # a small island
    saliency[10:40, 70:95] = 0.8  # another subject
    found = remove_specks(saliency)
    assert (found[30:34, 30:34] == 1).all()
    assert not found[80:84, 80:84].any()
    expected = saliency.copy()
    expected[30:34, 30:34], expected[80:84, 80:84] = 1, 0
    assert (found[expected == np.float32(0.8)] >= np.float32(0.8)).all()
    assert not found[expected == 0].any()
    assert not remove_specks(np.zeros((5, 5), np.float32)).any()


def test_a_large_hole_and_a_bay_at_the_edge_stay():
    saliency = np.ones((100, 100), np.float32)
    saliency[20:60, 20:60] = 0  # 16 % of the picture
    saliency[95:, 50:54] = 0  # small, and at the picture's edge
    np.testing.assert_array_equal(remove_specks(saliency), saliency)


def test_cropping_leaves_the_subject_and_a_margin():
    saliency = np.zeros((100, 200), np.float32)
    saliency[40:60, 50:90] = 1
    wanted = Composition(cutout=True, crop=True)
    cut = compose(saliency, (200, 100), wanted, Image.new("RGB", (200, 100), RED))
    assert cut.size == (40 + 8, 20 + 8)  # 2 % of 200 pixels on each side
    assert cut.getbbox() == (4, 4, 44, 24)
    nothing = compose(np.zeros((9, 9), np.float32), (9, 9), Composition(crop=True))
    assert nothing.size == (9, 9)


def _disc(size: int, ground: int) -> tuple[Image.Image, Image.Image, np.ndarray]:
    """A noisy picture of a disc, its exact mask, and what a network of 320 pixels may say of it.

    That is blurred, and two of its pixels too far to the right.
    """
    exact = Image.new("L", (size, size))
    ImageDraw.Draw(exact).ellipse([size * 0.2, size * 0.25, size * 0.7, size * 0.8], fill=255)
    picture = Image.composite(
        Image.new("RGB", exact.size, RED), Image.new("RGB", exact.size, (ground,) * 3), exact
    )
    noise = np.random.default_rng(0).normal(0, 4, (size, size, 3))
    noisy = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    rough = exact.resize((320, 320), Image.Resampling.BOX).convert("F")
    soft = np.asarray(rough.resize((80, 80), Image.Resampling.BOX).resize((320, 320))) / 255
    return Image.fromarray(noisy), exact, np.roll(np.asarray(soft, np.float32), 2, axis=1)


@pytest.mark.parametrize("ground", [90, 240])
def test_guided_edges_lie_where_the_pictures_do(ground: int):
    picture, exact, soft = _disc(1600, ground)
    truth = np.asarray(exact) > 127
    plain = np.asarray(resize_to_mask(soft, picture.size)) > 127
    guided = np.asarray(refine.refine_guided(picture, soft)) > 127
    assert boundary_f(truth, guided) > 0.9
    assert boundary_f(truth, guided) > boundary_f(truth, plain) + 0.1
    assert (truth != guided).mean() < (truth != plain).mean()


def test_a_guide_that_says_nothing_leaves_the_mask():
    flat = Image.new("RGB", (640, 480), (90, 90, 90))
    soft = np.asarray(draw_image(1_000_003).mask.convert("F"), np.float32) / 255
    plain, found = resize_to_mask(soft, flat.size), refine.refine_guided(flat, soft)
    assert np.abs(_pixels(plain).astype(int) - _pixels(found)).max() <= 1


def test_a_guide_whose_edges_lie_elsewhere_leaves_the_mask():
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::8] = 200  # of 8 pixels, in a picture whose windows are 21
    _, exact, _ = _disc(640, 300)
    soft = np.asarray(exact.resize((640, 480)).resize((40, 30), Image.Resampling.BOX), np.float32)
    plain = resize_to_mask(soft / 255, (640, 480))
    found = refine.refine_guided(Image.fromarray(stripes), soft / 255)
    assert np.abs(_pixels(plain).astype(int) - _pixels(found)).mean() < 0.5


def test_a_picture_smaller_than_the_map_is_refined_too():
    picture, exact, soft = _disc(100, 90)
    found = np.asarray(refine.refine_guided(picture, soft)) > 127
    assert (found != (np.asarray(exact) > 127)).mean() < 0.02


def test_matting_and_decontamination_find_the_subjects_own_colour():
    pytest.importorskip("pymatting", reason="an extra that is heavy: see test_the_extra")
    _, exact, soft = _disc(400, 240)
    blurred = exact.resize((50, 50), Image.Resampling.BOX).resize((400, 400))
    mixed = Image.composite(
        Image.new("RGB", exact.size, RED), Image.new("RGB", exact.size, (240,) * 3), blurred
    )
    alpha = _pixels(refine.refine_matting(mixed, soft))
    assert np.abs(alpha - _pixels(blurred).astype(float)).mean() < 4
    own = _pixels(refine.decontaminate(mixed, blurred)).astype(float)
    edge = (_pixels(blurred) > 60) & (_pixels(blurred) < 200)
    before = np.abs(_pixels(mixed)[edge] - np.array(RED, float)).mean()
    assert np.abs(own[edge] - np.array(RED)).mean() < 0.2 * before


def test_what_is_not_installed_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str):
        raise ImportError(name)

    monkeypatch.setattr(refine.importlib, "import_module", absent)
    for wanted, extra in (
        (Composition(refine=Refine.GUIDED), "refine"),
        (Composition(clean=True), "refine"),
        (Composition(cutout=True, decontaminate=True), "matting"),
    ):
        with pytest.raises(DependencyError, match=rf"u2export\[{extra}\]"):
            wanted.check_packages()
    Composition(cutout=True, feather=2, crop=True, threshold=0.5).check_packages()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": 0.0}, "over 0 and at most 1"),
        ({"threshold": 1.5}, "over 0 and at most 1"),
        ({"feather": -1.0}, "0 to 1000 pixels"),
        ({"feather": float("nan")}, "0 to 1000 pixels"),
        ({"decontaminate": True}, "goes with --cutout"),
    ],
)
def test_finishes_that_make_no_sense_are_refused(options: dict[str, object], sentence: str):
    with pytest.raises(InputError, match=sentence):
        Composition(**options)


@pytest.mark.parametrize("options", [{"quality": 0}, {"quality": 101}, {"png_level": 10}])
def test_encodings_that_no_format_has_are_refused(options: dict[str, int]):
    with pytest.raises(InputError, match="must be"):
        Encoding(**options)


def test_profile_and_exif_are_kept_and_the_orientation_is_applied_once(tmp_path: Path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a horse"  # orientation: turned; description
    stored = io.BytesIO()
    Image.new("RGB", (40, 20), RED).save(stored, "JPEG", icc_profile=profile, exif=exif)
    picture = open_image(stored)
    notes = encode.image_metadata(picture)
    for one in Format:
        path = tmp_path / f"r.{one}"
        encode.save_image(picture, path, Encoding(one), notes)
        with Image.open(path) as kept:
            assert kept.size == (20, 40)
            assert kept.info["icc_profile"] == profile
            assert dict(kept.getexif()) == {0x010E: "a horse"}


def test_exif_that_cannot_be_written_again_harms_no_picture(tmp_path: Path):
    stored, raw = io.BytesIO(), _exif_of(6, 2.5)
    Image.new("RGB", (40, 20), RED).save(stored, "JPEG", exif=raw)
    picture = open_image(stored)
    assert picture.size == (20, 40)
    encode.save_image(picture, tmp_path / "a.png", PNG_DEFAULT, encode.image_metadata(picture))
    large = {"exif": b"Exif\0\0" + bytes(70_000)}
    encode.save_image(picture, tmp_path / "a.jpg", Encoding(Format.JPG), large)
    with Image.open(tmp_path / "a.jpg") as found:
        assert "exif" not in found.info


def _exif_of(orientation: int, software: float) -> bytes:
    """EXIF whose software is a float where letters belong: it can be read, and not be written."""
    entries = struct.pack(">HHII", 0x0112, 3, 1, orientation << 16)
    entries += struct.pack(">HHIf", 0x0131, 11, 1, software)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)


def test_a_tiffs_layout_is_no_exif():
    stored = io.BytesIO()
    Image.new("RGB", (40, 20), RED).save(stored, "TIFF")
    assert encode.image_metadata(open_image(stored)) == {}


def test_a_large_result_can_be_cropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    saliency = np.zeros((40, 40), np.float32)
    saliency[5:35, 5:35] = 1
    assert compose(saliency, (40, 40), Composition(crop=True)).size == (32, 32)


def test_a_gray_guide_is_followed_as_exactly_as_in_double_precision():
    picture, _, soft = _disc(256, 240)
    gray = picture.convert("L").convert("RGB")
    channel, box = np.asarray(gray, np.float64)[..., 0] / 255, refine._box_filter(4)
    mask = np.asarray(refine._resize_map(soft, gray.size), np.float64)
    # three equal channels are one: slope = cov(I, p) / (var(I) + eps / 3)
    mean = box(channel)
    shared = box(channel * mask) - mean * box(mask)
    slope = shared / (box(channel * channel) - mean * mean + refine.VARIANCE_EPSILON / 3)
    followed = box(slope) * channel + box(box(mask) - slope * mean)
    variance = np.maximum(box(box(mask * mask) - box(mask) ** 2), 1e-9)
    trust = np.clip(2 * box(slope * shared) / variance, 0, 1)
    expected = 255 * (trust * followed + (1 - trust) * mask)
    found = _pixels(refine._upsample_guided(gray, gray, np.float32(mask), 4))
    assert np.abs(found - np.clip(expected, 0, 255)).max() < 1


def test_a_profile_of_inks_is_not_kept_for_colours():
    stored = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(stored, "JPEG", icc_profile=b"of four inks")
    assert "icc_profile" not in encode.image_metadata(open_image(stored))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("level", [0, 1, 6])
def test_png_keeps_every_value(mode: str, level: int, tmp_path: Path):
    shape = {"L": (150, 70), "RGB": (150, 70, 3), "RGBA": (150, 70, 4)}[mode]
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    values[:, :30] = np.arange(150, dtype=np.uint8).reshape(150, *[1] * (len(shape) - 1))
    path = tmp_path / "a.png"
    encode.save_image(Image.fromarray(values), path, Encoding(png_level=level), {})
    with Image.open(path) as found:
        assert found.mode == mode
        np.testing.assert_array_equal(np.asarray(found), values)


@pytest.mark.parametrize(("kind", "usual"), [(Format.WEBP, 80), (Format.JPG, 90)])
def test_each_format_has_a_usual_quality(tmp_path: Path, kind: Format, usual: int):
    picture = draw_image(1_000_703, (200, 150)).picture
    for name, quality in (("a", None), ("b", usual), ("c", usual - 5)):
        encode.save_image(picture, tmp_path / name, Encoding(kind, quality), {})
    one, two, three = ((tmp_path / name).read_bytes() for name in "abc")
    assert one == two != three


def test_webp_of_quality_100_keeps_every_value(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    encode.save_image(Image.fromarray(values), tmp_path / "a.webp", Encoding(Format.WEBP, 100), {})
    with Image.open(tmp_path / "a.webp") as found:
        np.testing.assert_array_equal(np.asarray(found), values)


def test_what_a_format_has_no_room_for_is_refused():
    wide = Image.new("L", (16384, 1))
    with pytest.raises(InputError, match="16384x1 pixels are more than webp's 16383"):
        encode.check_size_limits(wide, Encoding(Format.WEBP))
    encode.check_size_limits(wide, Encoding(Format.PNG))
    encode.check_size_limits(Image.new("L", (16383, 1)), Encoding(Format.WEBP))


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "a.png"
    target.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"a\.png could not be written: No space left"):
        encode.save_image(Image.new("L", (4, 4)), target, Encoding(), {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"before"
    assert partial_path(target).parent == tmp_path
