"""Frames of a video, raw and one after the other, to masks or cut-outs of the same size."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from u2export import flow, pipeline
from u2export.backend import Array
from u2export.errors import InputError
from u2export.run import Segmenter, refuse_drawings

CUT = 0.25  # mean difference of two maps from which on a new scene has begun
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True)
class Reel:
    """What frames are, and what is to be made of them.

    Attributes:
        size: (width, height) of a frame in pixels.
        cutout: give RGBA, not masks.
        smooth: how much of the frames before is kept in a mask, 0 to below 1: after a change of the
            scene a share of `smooth ** n` is left after n frames.
    """

    size: tuple[int, int]
    cutout: bool = False
    smooth: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no frame.

        Raises:
            InputError: a side is 0, or `smooth` is out of its range.
        """
        if min(self.size) < 1:
            raise InputError(f"a frame of {self.size[0]}x{self.size[1]} has no pixels")
        if not 0 <= self.smooth < 1:
            raise InputError(f"smooth must be 0 or more and below 1, got {self.smooth:g}")


def frame_size(text: str) -> tuple[int, int]:
    """Read the size of a frame, such as `1280x720`.

    Raises:
        InputError: it is none.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise InputError(f"a frame's size is WIDTHxHEIGHT, such as 1280x720, not {text!r}")
    return int(found[1]), int(found[2])


def frames(source: BinaryIO, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Read frames until there are no more.

    Args:
        source: 3 bytes R, G, B a pixel, rows from the top, no gaps: ffmpeg's `rgb24`.
        size: (width, height) of a frame in pixels.

    Raises:
        InputError: the last frame is cut short.
    """
    count = 3 * size[0] * size[1]
    while content := source.read(count):
        if len(content) < count:
            raise InputError(
                f"the last frame has {len(content)} of {count} bytes: it was cut short, or frames "
                f"are not {size[0]}x{size[1]} in rgb24"
            )
        yield Image.frombuffer("RGB", size, content, "raw", "RGB", 0, 1)


def segmented(
    segment: Segmenter, pictures: Iterable[Image.Image], reel: Reel
) -> Iterator[Image.Image]:
    """Make the result of each frame, in order; several are computed at once.

    Args:
        segment: what it was opened for at once is computed at once.
        pictures: upright, mode RGB, of one size.
        reel: what is to be made of them.

    Yields:
        Mode L, or RGBA for cut-outs.

    Raises:
        InputError: a frame's map holds NaN or infinite values, or a drawing was to be cut out.
        ExportError: the runtime failed.
    """
    if reel.cutout:
        refuse_drawings(segment.artifact)

    def computed(group: list[Image.Image]) -> list[tuple[Image.Image, Array]]:
        x = np.concatenate([pipeline.preprocess(one, segment.spec) for one in group])
        found = segment.saliency(x)
        return [(p, pipeline.stretch(y, segment.spec)) for p, y in zip(group, found, strict=True)]

    before: Array | None = None
    groups = flow.in_groups(pictures, segment.batch)
    done = flow.in_order(computed, groups, segment.workers, ahead=1)
    for picture, saliency in itertools.chain.from_iterable(done):
        if reel.smooth and before is not None and np.abs(saliency - before).mean() < CUT:
            saliency += np.float32(reel.smooth) * (before - saliency)
        before = saliency
        mask = pipeline.enlarge(saliency, picture.size)
        yield pipeline.cut_out(picture, mask) if reel.cutout else mask


def convert(segment: Segmenter, source: BinaryIO, sink: BinaryIO, reel: Reel) -> int:
    """Read raw frames, write raw results: 1 byte a pixel, or 4 (R, G, B, A) for cut-outs.

    Returns:
        How many frames there were.

    Raises:
        InputError: the last frame is cut short, or there is none; or the results find no place.
        ExportError: the runtime failed.
    """
    count = 0
    for result in segmented(segment, frames(source, reel.size), reel):
        try:
            sink.write(result.tobytes())
            sink.flush()
        except OSError as error:
            raise InputError(f"results cannot be written: {error.strerror}") from error
        count += 1
    if not count:
        raise InputError("there was no frame")
    return count
