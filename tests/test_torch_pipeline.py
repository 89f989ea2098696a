"""The picture's way on a device, against the NumPy and Pillow one, which is the reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from u2export.core.enums import Resize
from u2export.core.models import MODELS
from u2export.errors import InputError
from u2export.images.postprocess import postprocess
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.images.torch_pipeline import TorchPipeline

SPEC = dataclasses.replace(MODELS["u2netp"].picture, size=64)
SIZES = [(64, 64), (300, 200), (47, 133), (200, 40), (31, 29), (1283, 951)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _pictures() -> list[Image.Image]:
    found = [draw_image(seed, size).picture for seed, size in enumerate(SIZES, 1_000_700)]
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    return [*found, Image.fromarray(noise), Image.new("RGB", (50, 80))]


def _tensor(picture: Image.Image, device: str) -> torch.Tensor:
    return torch.tensor(np.asarray(picture), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("resize", list(Resize))
def test_the_input_is_the_pipelines(resize: Resize, device: str):
    spec = dataclasses.replace(SPEC, resize=resize)
    pictures = _pictures()
    found = TorchPipeline(spec, device).preprocess([_tensor(one, device) for one in pictures])
    assert found.shape == (len(pictures), 3, 64, 64)
    # a level of 255, by the smallest standard deviation; the largest value may be a level off, too
    level = 2 / 255 / min(spec.std)
    for place, picture in enumerate(pictures):
        apart = np.abs(found[place].cpu().numpy() - preprocess(picture, spec)[0])
        assert apart.max() <= (2e-5 if resize is Resize.AUTHORS else 1.01 * level), place
        assert np.mean(apart > 2e-5) <= (0 if resize is Resize.AUTHORS else 0.01), place


def test_pictures_of_one_size_are_prepared_at_once():
    pictures = torch.tensor(np.random.default_rng(1).integers(0, 256, (3, 50, 90, 3), np.uint8))
    way = TorchPipeline(SPEC, "cpu")
    assert torch.equal(way.preprocess(pictures), way.preprocess(list(pictures)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inverted", [False, True])
def test_masks_are_the_pipelines(inverted: bool, device: str):
    spec = dataclasses.replace(SPEC, inverted=inverted)
    maps = np.random.default_rng(2).random((8, 1, 64, 64), np.float32)
    maps[1] = maps[1] * 0.2 + 0.3
    maps[7] = 0.25  # no subject
    sizes = [*SIZES, (640, 480), (640, 480)]
    found = TorchPipeline(spec, device).postprocess(torch.tensor(maps, device=device), sizes)
    for one, mask, size in zip(maps, found, sizes, strict=True):
        expected = np.asarray(postprocess(one[0], size, spec))
        assert mask.shape == expected.shape
        assert mask.dtype == torch.uint8
        apart = np.abs(mask.cpu().numpy().astype(int) - expected)
        assert apart.max() <= 1
        assert np.mean(apart > 0) <= 0.001


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_that_is_no_map_is_refused(value: float):
    maps = torch.rand(2, 1, 64, 64)
    maps[1, 0, 3, 3] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        TorchPipeline(SPEC, "cpu").postprocess(maps, [(10, 10), (10, 10)])


def test_what_is_no_picture_is_refused():
    way = TorchPipeline(SPEC, "cpu")
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(8, 8, 4, dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"\(H,W,3\) uint8"):
            way.preprocess([wrong])
    for wrong in (torch.zeros(8, 8, 3, dtype=torch.uint8), torch.tensor(0)):
        with pytest.raises(InputError, match=r"one tensor of pictures must be \(N,H,W,3\)"):
            way.preprocess(wrong)
    with pytest.raises(InputError, match="no picture"):
        way.preprocess([])
    with pytest.raises(InputError, match="2 maps and 1 sizes"):
        way.postprocess(torch.rand(2, 1, 64, 64), [(10, 10)])
