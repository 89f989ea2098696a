from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from u2export.images.synthetic import HELD_OUT_SEED, draw_image


def test_the_same_seed_gives_the_same_pixels_and_another_does_not():
    one, again, other = draw_image(3), draw_image(3), draw_image(4)
    assert one.picture.tobytes() == again.picture.tobytes()
    assert one.mask.tobytes() == again.mask.tobytes()
    assert one.picture.tobytes() != other.picture.tobytes()


@pytest.mark.parametrize("size", [(16, 16), (97, 33), (320, 320)])
def test_picture_and_mask_have_the_size_and_modes_asked_for(size: tuple[int, int]):
    drawn = draw_image(5, size)
    assert (drawn.picture.mode, drawn.picture.size) == ("RGB", size)
    assert (drawn.mask.mode, drawn.mask.size) == ("L", size)


def test_subjects_cover_what_the_page_says():
    masks = [draw_image(HELD_OUT_SEED + i, (96, 96)).mask for i in range(200)]
    shares = [np.asarray(mask).mean() / 255 for mask in masks]
    assert min(shares) >= 0.04
    assert max(shares) <= 0.7
    assert 0.15 < float(np.median(shares)) < 0.35


def test_no_subject_gives_an_empty_mask():
    assert not np.asarray(draw_image(6, subjects=0).mask).any()


def test_the_mask_is_where_the_subject_was_painted():
    """A subject differs from its ground far more inside the mask than just outside of it."""
    inside, outside = [], []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 20):
        drawn = draw_image(seed, (128, 128))
        mask = np.asarray(drawn.mask)
        pixels = np.asarray(drawn.picture, np.float32)
        ground = np.median(pixels[mask == 0], axis=0)
        inside.append(np.abs(pixels[mask == 255] - ground).mean())
        outside.append(np.abs(pixels[mask == 0] - ground).mean())
    # 6.5 as drawn; 2.2 where only the shadow is left and no subject is painted
    assert np.mean(inside) > 4 * np.mean(outside)


def test_drawing_needs_no_torch():
    code = "import sys, u2export.images.synthetic; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_masks_have_soft_edges():
    values = np.asarray(draw_image(8).mask)
    assert 0 < ((values > 0) & (values < 255)).sum() < 0.05 * values.size


def test_the_bundled_picture_is_one_of_the_held_out_ones():
    from pathlib import Path

    stored = Image.open(Path(__file__).resolve().parents[1] / "weights/demo-picture.jpg")
    again = draw_image(1_000_310, (800, 600)).picture
    difference = np.abs(np.asarray(stored, np.float32) - np.asarray(again, np.float32))
    assert difference.mean() < 4
