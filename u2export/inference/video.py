"""Raw video frames to raw masks or cut-outs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from u2export.core.arrays import Array
from u2export.errors import InputError
from u2export.images.compose import cut_out
from u2export.images.postprocess import resize_to_mask, stretch_saliency
from u2export.images.preprocess import preprocess
from u2export.inference.segmenter import Segmenter, refuse_drawings
from u2export.system import ordered_pool

# Mean difference of two consecutive saliency maps, in [0,1]. A larger one starts a new scene.
SCENE_CHANGE = 0.25
_SIZE_PATTERN = re.compile(r"(\d{1,5})[xX×](\d{1,5})")


@dataclass(frozen=True)
class FrameFormat:
    """The size of frames, and what to make of them.

    Attributes:
        size: (width, height) of a frame in pixels.
        cutout: write RGBA cut-outs instead of masks.
        smooth: share of the previous saliency map in each new one, from 0 to below 1. A map
            contributes `smooth ** n` after n frames. A new scene starts afresh.
    """

    size: tuple[int, int]
    cutout: bool = False
    smooth: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: a side is 0, or `smooth` is out of range.
        """
        if min(self.size) < 1:
            raise InputError(f"a frame of {self.size[0]}x{self.size[1]} has no pixels")
        if not 0 <= self.smooth < 1:
            raise InputError(f"smooth must be 0 or more and below 1, got {self.smooth:g}")


def parse_frame_size(text: str) -> tuple[int, int]:
    """Read the size of a frame, such as `1280x720`.

    Returns:
        (width, height) in pixels.

    Raises:
        InputError: the text is no size.
    """
    match = _SIZE_PATTERN.fullmatch(text)
    if not match:
        raise InputError(f"a frame's size is WIDTHxHEIGHT, such as 1280x720, not {text!r}")
    return int(match[1]), int(match[2])


def convert_video(
    segmenter: Segmenter, source: BinaryIO, sink: BinaryIO, frame_format: FrameFormat
) -> int:
    """Read raw frames and write raw results.

    Args:
        segmenter: the opened artifact.
        source: as for `read_frames`.
        sink: receives 1 byte a pixel for masks, or 4 bytes (R, G, B, A) for cut-outs.
        frame_format: the size of frames, and what to make of them.

    Returns:
        The number of frames.

    Raises:
        InputError: the last frame is truncated, there is no frame, or the sink refuses a result.
        ExportError: the runtime failed.
    """
    count = 0
    frames = read_frames(source, frame_format.size)
    for result in segment_frames(segmenter, frames, frame_format):
        try:
            sink.write(result.tobytes())
            sink.flush()
        except OSError as error:
            raise InputError(f"results cannot be written: {error.strerror}") from error
        count += 1
    if not count:
        raise InputError("there was no frame")
    return count


def read_frames(source: BinaryIO, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Read raw frames until the source ends.

    Args:
        source: 3 bytes R, G, B a pixel, rows from the top, no gaps: ffmpeg's `rgb24`.
        size: (width, height) of a frame in pixels.

    Yields:
        Mode RGB.

    Raises:
        InputError: the last frame is truncated.
    """
    frame_bytes = 3 * size[0] * size[1]
    while content := source.read(frame_bytes):
        if len(content) < frame_bytes:
            raise InputError(
                f"the last frame has {len(content)} of {frame_bytes} bytes: it was cut short, or "
                f"frames are not {size[0]}x{size[1]} in rgb24"
            )
        yield Image.frombuffer("RGB", size, content, "raw", "RGB", 0, 1)


def segment_frames(
    segmenter: Segmenter, frames: Iterable[Image.Image], frame_format: FrameFormat
) -> Iterator[Image.Image]:
    """Make the result of each frame, in order; several frames are computed at once.

    Args:
        segmenter: its `workers` compute frames at the same time.
        frames: upright, mode RGB, of one size.
        frame_format: what to make of them.

    Yields:
        Mode L, or RGBA for cut-outs.

    Raises:
        InputError: a saliency map holds NaN or infinite values, or a drawing was to be cut out.
        ExportError: the runtime failed.
    """
    if frame_format.cutout:
        refuse_drawings(segmenter.artifact)

    def stretched_maps(batch: list[Image.Image]) -> list[tuple[Image.Image, Array]]:
        x = np.concatenate([preprocess(frame, segmenter.spec) for frame in batch])
        maps = [stretch_saliency(saliency, segmenter.spec) for saliency in segmenter.saliency(x)]
        return list(zip(batch, maps, strict=True))

    batches = ordered_pool.in_batches(frames, segmenter.batch)
    computed = ordered_pool.map_in_order(stretched_maps, batches, segmenter.workers, ahead=1)
    previous: Array | None = None
    for frame, saliency in itertools.chain.from_iterable(computed):
        if frame_format.smooth and previous is not None:
            _smooth_in_place(saliency, previous, frame_format.smooth)
        previous = saliency
        mask = resize_to_mask(saliency, frame.size)
        yield cut_out(frame, mask) if frame_format.cutout else mask


def _smooth_in_place(saliency: Array, previous: Array, share: float) -> None:
    """Blend a map with the previous one, unless the scene has changed."""
    if np.abs(saliency - previous).mean() < SCENE_CHANGE:
        saliency += np.float32(share) * (previous - saliency)
