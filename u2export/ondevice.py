"""The picture's way on a PyTorch device: from 8-bit pictures to 8-bit masks without leaving it.

The same rules as `pipeline`, which stays the reference. Where the two may differ:

* `authors`: the same four pixels are blended, in another order: the input differs by 2e-5 at most.
* Pillow's filters: it rounds to 8 bits after either direction, and so does this; a value halfway
  between two levels may fall to the other side: by a level of 255, for fewer than 1 in 100.
* The mask differs by one level of 255 at most, where the saliency is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from u2export.errors import InputError
from u2export.pipeline import FLAT, neighbours
from u2export.spec import PictureSpec, Resize

_BICUBIC = -0.5  # the slope that Pillow's cubic has
_LOBES = 3  # of Pillow's Lanczos


def _triangle(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.maximum(1 - np.abs(x), 0)
    return found


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), _BICUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < _LOBES, np.sinc(x) * np.sinc(x / _LOBES), 0)


# a filter, and how far it reaches, in pixels of the smaller picture
_FILTERS: dict[Resize, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    Resize.BILINEAR: (_triangle, 1),
    Resize.BICUBIC: (_cubic, 2),
    Resize.LANCZOS: (_lanczos, _LOBES),
}


class OnDevice:
    """Pre- and postprocessing of batches that lie on a device."""

    def __init__(self, spec: PictureSpec, device: torch.device | str) -> None:
        """Put the constants on the device.

        Args:
            spec: input size, resize, mean and standard deviation; whether maps are inverted.
            device: such as `cuda`; `cpu` computes the same.
        """
        self._spec = spec
        self._device = torch.device(device)
        with torch.inference_mode(mode=False):
            self._mean, self._std = (
                torch.tensor(values, dtype=torch.float32, device=self._device)[:, None, None]
                for values in (spec.mean, spec.std)
            )

    def prepare(self, pictures: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """Turn pictures into the network's input.

        Args:
            pictures: each (H,W,3) uint8, R, G, B, upright and opaque, on the device; their sizes
                may differ. Pictures of one size are best given as one (N,H,W,3) tensor.

        Returns:
            (N,3,size,size) float32, as `pipeline.preprocess` gives it.

        Raises:
            InputError: what is given is no such picture.
        """
        if isinstance(pictures, torch.Tensor) and pictures.ndim != 4:
            raise InputError(
                f"one tensor of pictures must be (N,H,W,3), got {tuple(pictures.shape)}"
            )
        if not len(pictures):
            raise InputError("no picture was given")
        if isinstance(pictures, torch.Tensor):
            squares = self._squashed(pictures)
        else:
            squares = torch.cat([self._squashed(one[None]) for one in pictures])
        largest = squares.amax((1, 2, 3), keepdim=True)
        squares = squares / torch.where(largest > 0, largest, 1)
        return (squares - self._mean) / self._std

    def _squashed(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N,H,W,3) uint8 to (N,3,size,size) float32 of 0 to 255."""
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
            raise InputError(
                f"pictures must be (H,W,3) uint8, got {tuple(pictures.shape[1:])} {pictures.dtype}"
            )
        size, resize = self._spec.size, self._spec.resize
        _, height, width, _ = pictures.shape
        if resize is Resize.AUTHORS:
            return self._blended(pictures).permute(0, 3, 1, 2)
        planes = pictures.permute(0, 3, 1, 2).to(torch.float32)
        across = self._weights(resize, width, size).T
        down = self._weights(resize, height, size)
        return _both(planes, across, down, first=_across_first(resize, width, height, size))

    def _blended(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N,H,W,3) uint8 to (N,size,size,3) float32: the four pixels around each new one."""
        _, height, width, _ = pictures.shape
        top, bottom, down = _sources(height, self._spec.size, self._device)
        left, right, across = _sources(width, self._spec.size, self._device)

        def blended(places: torch.Tensor) -> torch.Tensor:
            rows = pictures.index_select(1, places)
            a, b = (rows.index_select(2, one).to(torch.float32) for one in (left, right))
            return a + (b - a) * across[:, None]

        above = blended(top)
        return above + (blended(bottom) - above) * down[:, None, None]

    def masks(self, saliency: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Turn the network's maps into masks of the pictures' sizes.

        Args:
            saliency: (N,1,H,W), values in [0,1], on the device; of any floating type.
            sizes: (width, height) in pixels, of each.

        Returns:
            Each (height,width) uint8 on the device, as `pipeline.postprocess` gives it; those of
            neighbours with the same size are parts of one tensor.

        Raises:
            InputError: a map holds NaN or infinite values; or there are not as many sizes as maps.
        """
        if len(sizes) != len(saliency):
            raise InputError(f"{len(saliency)} maps and {len(sizes)} sizes were given")
        stretched = self._stretched(saliency.to(torch.float32))
        found: list[torch.Tensor] = []
        while len(found) < len(sizes):
            first = len(found)
            last = first + 1
            while last < len(sizes) and sizes[last] == sizes[first]:
                last += 1
            found += self._enlarged(stretched[first:last], sizes[first])
        if not bool(torch.isfinite(saliency).all()):  # asked last: the device works meanwhile
            raise InputError("the network's output holds NaN or infinite values: it has no mask")
        return found

    def _stretched(self, maps: torch.Tensor) -> torch.Tensor:
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        spread = high - low
        flat = spread <= FLAT
        masks = (maps - low) / torch.where(flat, 1, spread)
        masks = 1 - masks if self._spec.inverted else masks
        return torch.where(flat, 0, masks)

    def _enlarged(self, stretched: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(N,1,H,W) float32 in [0,1] to (N,height,width) uint8."""
        width, height = size
        _, _, rows, columns = stretched.shape
        values = stretched * 255
        if width >= columns and height >= rows:
            values = functional.interpolate(
                values, (height, width), mode="bilinear", align_corners=False
            )
        else:  # then some become means of several, as in Pillow
            across = self._weights(Resize.BILINEAR, columns, width)
            down = self._weights(Resize.BILINEAR, rows, height)
            values = down @ (values @ across.T)
        return (values[:, 0] + 0.5).to(torch.uint8)

    def _weights(self, resize: Resize, old: int, new: int) -> torch.Tensor:
        return _weights(resize, old, new, self._device)


@lru_cache(maxsize=64)
def _sources(old: int, new: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode(mode=False):  # kept for whoever comes next
        return tuple(torch.tensor(one, device=device) for one in neighbours(old, new))


@lru_cache(maxsize=64)
def _weights(resize: Resize, old: int, new: int, device: torch.device) -> torch.Tensor:
    """What every old pixel of a row gives to every new one: (new,old) float32.

    Source:
        Pillow, Resample.c: a filter is as wide as the step between new pixels, at least as one old
        pixel; its values at the old pixels' centres are divided by their sum.
    """
    shape, reach = _FILTERS[resize]
    scale = old / new
    wide = max(scale, 1.0)
    places = np.arange(old) + 0.5
    found = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * scale
        first = max(int(centre - reach * wide + 0.5), 0)
        last = min(int(centre + reach * wide + 0.5), old)
        values = shape((places[first:last] - centre) / wide)
        found[row, first:last] = values / values.sum()
    with torch.inference_mode(mode=False):
        return torch.tensor(found, dtype=torch.float32, device=device)


def _both(
    planes: torch.Tensor, across: torch.Tensor, down: torch.Tensor, *, first: bool
) -> torch.Tensor:
    """Resize in either direction, `across` first or not, with whole levels after each.

    A direction in which nothing changes has weights of 0 and 1, and changes nothing.
    """
    if first:
        return _rounded(_down(down, _rounded(_across(planes, across))))
    return _rounded(_across(_rounded(_down(down, planes)), across))


def _across(planes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply whole levels by weights, as exactly where products are made in TF32.

    TF32 holds 8-bit values and the weights' upper part exactly.
    """
    upper = weights.to(torch.bfloat16).to(torch.float32)
    return planes @ upper + planes @ (weights - upper)


def _down(weights: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    return _across(planes.mT, weights.mT).mT


@lru_cache(maxsize=1024)
def _across_first(resize: Resize, width: int, height: int, size: int) -> bool:
    """Whether Pillow resizes a picture of this size across before it resizes it down.

    Up to 12 it always did; from 13 on not if the height shrinks much more than the width, and which
    comes first moves a third of the values by a level. So the one that is installed is asked.

    Source:
        Pillow, pull request 9549.
    """
    probe = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    given = Image.fromarray(probe).resize((size, size), getattr(Image.Resampling, resize.name))
    expected = torch.tensor(np.asarray(given), dtype=torch.float32)
    across, down = (_weights(resize, old, size, torch.device("cpu")) for old in (width, height))
    plane = torch.tensor(probe, dtype=torch.float32)
    one, two = (
        (_both(plane, across.T, down, first=first) - expected).abs().sum()
        for first in (True, False)
    )
    return bool(one <= two)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """To whole levels, halves up, as Pillow rounds."""
    return torch.floor(values + 0.5).clamp(0, 255)
