"""What programs hand to a segmenter, and how they pass it on."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from attacks.table import SMALL_PICTURE, picture
from PIL import Image

from u2export import InputError, Segmenter, load


@pytest.fixture(scope="module")
def segment(small: Path) -> Segmenter:
    return load(small / "u2netp-demo-fp32-64-bN.onnx")


def _same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_a_picture_is_an_image_a_path_or_an_array(segment: Segmenter, tmp_path: Path):
    path, rgb = picture(tmp_path / "p.png"), np.asarray(SMALL_PICTURE)
    expected = segment(SMALL_PICTURE)
    opaque = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    for form in (path, str(path), rgb, rgb[:, :, :], opaque, np.asfortranarray(rgb)):
        assert _same(segment(form), expected)
    gray = np.asarray(SMALL_PICTURE.convert("L"))
    assert _same(segment(gray), segment(gray[:, :, None]))
    assert _same(segment(gray), segment(SMALL_PICTURE.convert("L")))
    assert _same(
        segment(rgb[:, ::-1]), segment(SMALL_PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "not NoneType"),
        (b"\x89PNG", "not bytes"),
        (3, "not int"),
        ([[1]], "not list"),
        (np.zeros((4, 4, 3), np.float32), r"got float32 \(4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"got uint8 \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"got uint8 \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (Image.new("RGB", (0, 0)), "0x0 has no pixels"),
        ("absent.png", "there is no picture at absent.png"),
        (".", "it is a folder, not a file"),
    ],
)
def test_anything_else_is_a_sentence(segment: Segmenter, given: object, sentence: str):
    with pytest.raises(InputError, match=sentence):
        segment(given)


def test_a_segmenter_is_pickled_and_copied_as_path_and_options(small: Path):
    with load(small / "u2netp-demo-fp32-64-bN.onnx", threads=1, resample="bilinear") as segment:
        expected = segment(SMALL_PICTURE)
        written = pickle.dumps(segment)
        assert len(written) < 10_000
        for other in (pickle.loads(written), copy.deepcopy(segment)):
            with other:
                assert other.spec == segment.spec
                assert _same(other(SMALL_PICTURE), expected)
        assert _same(segment(SMALL_PICTURE), expected)


def test_processes_of_a_pool_get_a_segmenter(segment: Segmenter):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        [mask] = pool.map(segment, [SMALL_PICTURE])
        assert pool.apply(os.getpid) != os.getpid()
    assert _same(mask, segment(SMALL_PICTURE))
