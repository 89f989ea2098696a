"""Pre- and postprocessing on a PyTorch device, in batches.

The rules are those of `preprocess` and `postprocess`, which stay the reference. The results may
differ as follows:

* `authors`: the same four pixels are blended in another order. The input differs by 2e-5 at most.
* Pillow's filters round to 8 bits after each direction, and so does this module. A value halfway
  between two levels may round differently: by one level of 255, for fewer than 1 value in 100.
* For the same saliency, the mask differs by one level of 255 at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from u2export.core.enums import Resize
from u2export.core.models import PictureSpec
from u2export.errors import InputError
from u2export.images.postprocess import FLAT_RANGE
from u2export.images.preprocess import bilinear_neighbours


class TorchPipeline:
    """Pre- and postprocessing of batches on a device."""

    def __init__(self, spec: PictureSpec, device: torch.device | str) -> None:
        """Copy the constants to the device.

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

    def preprocess(self, pictures: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """Turn pictures into the network's input.

        Args:
            pictures: each (H,W,3) uint8, R, G, B, upright and opaque, on the device. Their sizes
                may differ. Pictures of one size are faster as one (N,H,W,3) tensor.

        Returns:
            (N,3,size,size) float32, as from `preprocess.preprocess`.

        Raises:
            InputError: a tensor has another shape or type, or there is none.
        """
        if isinstance(pictures, torch.Tensor) and pictures.ndim != 4:
            raise InputError(
                f"one tensor of pictures must be (N,H,W,3), got {tuple(pictures.shape)}"
            )
        if not len(pictures):
            raise InputError("no picture was given")
        if isinstance(pictures, torch.Tensor):
            squares = self._resize_squares(pictures)
        else:
            squares = torch.cat([self._resize_squares(picture[None]) for picture in pictures])
        largest = squares.amax((1, 2, 3), keepdim=True)
        squares = squares / torch.where(largest > 0, largest, 1)
        return (squares - self._mean) / self._std

    def _resize_squares(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N,H,W,3) uint8 to (N,3,size,size) float32, values 0 to 255."""
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
            raise InputError(
                f"pictures must be (H,W,3) uint8, got {tuple(pictures.shape[1:])} {pictures.dtype}"
            )
        size, resize = self._spec.size, self._spec.resize
        _, height, width, _ = pictures.shape
        if resize is Resize.AUTHORS:
            return self._resize_bilinear(pictures).permute(0, 3, 1, 2)
        planes = pictures.permute(0, 3, 1, 2).to(torch.float32)
        horizontal = _resize_weights(resize, width, size, self._device).T
        vertical = _resize_weights(resize, height, size, self._device)
        horizontal_first = _is_horizontal_first(resize, width, height, size)
        return _resize_rounded(planes, horizontal, vertical, horizontal_first=horizontal_first)

    def _resize_bilinear(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N,H,W,3) uint8 to (N,size,size,3) float32: blend four old pixels for each new one."""
        _, height, width, _ = pictures.shape
        top, bottom, y_weights = _neighbour_tensors(height, self._spec.size, self._device)
        left, right, x_weights = _neighbour_tensors(width, self._spec.size, self._device)

        def blended_rows(indices: torch.Tensor) -> torch.Tensor:
            rows = pictures.index_select(1, indices)
            a, b = (rows.index_select(2, columns).to(torch.float32) for columns in (left, right))
            return a + (b - a) * x_weights[:, None]

        above = blended_rows(top)
        return above + (blended_rows(bottom) - above) * y_weights[:, None, None]

    def postprocess(
        self, saliency: torch.Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor]:
        """Turn saliency maps into masks of the pictures' sizes.

        Args:
            saliency: (N,1,H,W), values in [0,1], on the device; of any floating type.
            sizes: (width, height) of each picture in pixels.

        Returns:
            Each (height,width) uint8 on the device, as from `postprocess.postprocess`. Consecutive
            masks of one size are views of one tensor.

        Raises:
            InputError: a map holds NaN or infinite values, or the numbers of maps and sizes differ.
        """
        if len(sizes) != len(saliency):
            raise InputError(f"{len(saliency)} maps and {len(sizes)} sizes were given")
        stretched = self._stretch_saliency(saliency.to(torch.float32))
        masks: list[torch.Tensor] = []
        while len(masks) < len(sizes):
            start = len(masks)
            end = start + 1
            while end < len(sizes) and sizes[end] == sizes[start]:
                end += 1
            masks += self._resize_to_masks(stretched[start:end], sizes[start])
        # This waits for the device, so it comes last.
        if not bool(torch.isfinite(saliency).all()):
            raise InputError("the network's output holds NaN or infinite values: it has no mask")
        return masks

    def _stretch_saliency(self, maps: torch.Tensor) -> torch.Tensor:
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        value_range = high - low
        is_flat = value_range <= FLAT_RANGE
        stretched = (maps - low) / torch.where(is_flat, 1, value_range)
        stretched = 1 - stretched if self._spec.inverted else stretched
        return torch.where(is_flat, 0, stretched)

    def _resize_to_masks(self, stretched: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(N,1,H,W) float32 in [0,1] to (N,height,width) uint8."""
        width, height = size
        _, _, rows, columns = stretched.shape
        values = stretched * 255
        if width >= columns and height >= rows:
            values = functional.interpolate(
                values, (height, width), mode="bilinear", align_corners=False
            )
        else:  # a side shrinks: Pillow takes means of several values
            horizontal = _resize_weights(Resize.BILINEAR, columns, width, self._device).T
            vertical = _resize_weights(Resize.BILINEAR, rows, height, self._device)
            values = vertical @ (values @ horizontal)
        return (values[:, 0] + 0.5).to(torch.uint8)


@lru_cache(maxsize=64)
def _neighbour_tensors(
    old_length: int, new_length: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """`bilinear_neighbours` as tensors on a device."""
    with torch.inference_mode(mode=False):  # cached tensors may be used outside of it later
        return tuple(
            torch.tensor(values, device=device)
            for values in bilinear_neighbours(old_length, new_length)
        )


@lru_cache(maxsize=64)
def _resize_weights(
    resize: Resize, old_length: int, new_length: int, device: torch.device
) -> torch.Tensor:
    """The weight of each old pixel of a row in each new one: (new_length,old_length) float32.

    Source:
        Pillow, Resample.c: a filter is as wide as the step between new pixels, at least as one old
        pixel. Its values at the centres of the old pixels are divided by their sum.
    """
    kernel, radius = _KERNELS[resize]
    scale = old_length / new_length
    kernel_scale = max(scale, 1.0)
    old_centres = np.arange(old_length) + 0.5
    weights = np.zeros((new_length, old_length))
    for index in range(new_length):
        centre = (index + 0.5) * scale
        start = max(int(centre - radius * kernel_scale + 0.5), 0)
        end = min(int(centre + radius * kernel_scale + 0.5), old_length)
        values = kernel((old_centres[start:end] - centre) / kernel_scale)
        weights[index, start:end] = values / values.sum()
    with torch.inference_mode(mode=False):  # cached tensors may be used outside of it later
        return torch.tensor(weights, dtype=torch.float32, device=device)


def _triangle_kernel(x: np.ndarray) -> np.ndarray:
    values: np.ndarray = np.maximum(1 - np.abs(x), 0)
    return values


def _cubic_kernel(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), _CUBIC_SLOPE
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos_kernel(x: np.ndarray) -> np.ndarray:
    window = np.sinc(x / _LANCZOS_LOBES)
    return np.where(np.abs(x) < _LANCZOS_LOBES, np.sinc(x) * window, 0)


_CUBIC_SLOPE = -0.5  # of Pillow's cubic filter
_LANCZOS_LOBES = 3  # of Pillow's Lanczos filter
# A kernel, and its radius in pixels of the smaller picture.
_KERNELS: dict[Resize, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    Resize.BILINEAR: (_triangle_kernel, 1),
    Resize.BICUBIC: (_cubic_kernel, 2),
    Resize.LANCZOS: (_lanczos_kernel, _LANCZOS_LOBES),
}


@lru_cache(maxsize=1024)
def _is_horizontal_first(resize: Resize, width: int, height: int, size: int) -> bool:
    """Whether Pillow resizes a picture of this size horizontally before vertically.

    Up to Pillow 12 it always does. From 13 on it does not if the height shrinks much more than the
    width. The order changes a third of the values by one level. So this resizes a random picture
    with the installed Pillow, and compares.

    Source:
        Pillow, pull request 9549.
    """
    probe = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    filter_ = getattr(Image.Resampling, resize.name)
    resized = np.asarray(Image.fromarray(probe).resize((size, size), filter_))
    expected = torch.tensor(resized, dtype=torch.float32)
    plane = torch.tensor(probe, dtype=torch.float32)
    horizontal, vertical = (
        _resize_weights(resize, length, size, torch.device("cpu")) for length in (width, height)
    )
    horizontal_error, vertical_error = (
        (_resize_rounded(plane, horizontal.T, vertical, horizontal_first=first) - expected)
        .abs()
        .sum()
        for first in (True, False)
    )
    return bool(horizontal_error <= vertical_error)


def _resize_rounded(
    planes: torch.Tensor,
    horizontal: torch.Tensor,
    vertical: torch.Tensor,
    *,
    horizontal_first: bool,
) -> torch.Tensor:
    """Resize in both directions; round to 8-bit levels after each.

    A direction that keeps its length has weights of 0 and 1, and changes nothing.

    Args:
        planes: (...,H,W) float32, values 0 to 255.
        horizontal: (W,new width) weights.
        vertical: (new height,H) weights.
        horizontal_first: the order.

    Returns:
        (...,new height,new width) float32, integers 0 to 255.
    """
    if horizontal_first:
        return _round(_multiply_left(vertical, _round(_multiply_exactly(planes, horizontal))))
    return _round(_multiply_exactly(_round(_multiply_left(vertical, planes)), horizontal))


def _multiply_exactly(planes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply 8-bit levels by weights, exactly even on a device that multiplies in TF32.

    TF32 holds the levels and the upper bits of the weights exactly.
    """
    upper = weights.to(torch.bfloat16).to(torch.float32)
    return planes @ upper + planes @ (weights - upper)


def _multiply_left(weights: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    return _multiply_exactly(planes.mT, weights.mT).mT


def _round(values: torch.Tensor) -> torch.Tensor:
    """Round to 8-bit levels, halves up, as Pillow does."""
    return torch.floor(values + 0.5).clamp(0, 255)
