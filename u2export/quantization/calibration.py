"""Calibration pictures, in two halves: one for the search, one for its validation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from u2export.core.arrays import Array
from u2export.core.models import PictureSpec
from u2export.errors import InputError
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import HELD_OUT_SEED, draw_image
from u2export.system.files import file_sha256
from u2export.system.progress import say

_MIN_PICTURES = 8
_SYNTHETIC_SEEDS = range(HELD_OUT_SEED + 100, HELD_OUT_SEED + 116)


@dataclass(frozen=True)
class Calibration:
    """Preprocessed pictures (1,3,H,W) float32 by their sha256, in two halves.

    Attributes:
        search_inputs: give the ranges, the rounding and the choice of layers.
        validation_inputs: measure the result and nothing else.
        synthetic: the pictures are drawn by u2export.
    """

    search_inputs: dict[str, Array]
    validation_inputs: dict[str, Array]
    synthetic: bool


def prepare_calibration(paths: Sequence[Path], spec: PictureSpec) -> Calibration:
    """Read the calibration pictures, or draw synthetic ones if there are none.

    The pictures are sorted by hash and go alternately into the two halves. So names and order do
    not matter, and a duplicate counts once.

    Args:
        paths: picture files.
        spec: the preprocessing that the weights need.

    Raises:
        InputError: there are fewer than 8 pictures, or one cannot be read.
    """
    if paths:
        inputs = _read_pictures({file_sha256(path): path for path in paths}, spec)
    else:
        say(
            "drawn pictures calibrate this: on photographs the mask will be worse than what is "
            "judged here; give some of your own with --calibration"
        )
        synthetic = (preprocess(draw_image(seed).picture, spec) for seed in _SYNTHETIC_SEEDS)
        inputs = {hashlib.sha256(x.tobytes()).hexdigest(): x for x in synthetic}
    hashes = sorted(inputs)
    return Calibration(
        search_inputs={sha256: inputs[sha256] for sha256 in hashes[0::2]},
        validation_inputs={sha256: inputs[sha256] for sha256 in hashes[1::2]},
        synthetic=not paths,
    )


def _read_pictures(paths: Mapping[str, Path], spec: PictureSpec) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    errors: list[InputError] = []
    for sha256, path in paths.items():
        try:
            inputs[sha256] = preprocess(open_image(path), spec)
        except InputError as error:
            errors.append(error)
    if errors:
        more = f" ({len(errors) - 1} more cannot either)" if len(errors) > 1 else ""
        raise InputError(f"a calibration picture cannot be used: {errors[0]}{more}")
    if len(inputs) < _MIN_PICTURES:
        raise InputError(
            f"calibration needs {_MIN_PICTURES} different calibration pictures or more, "
            f"got {len(inputs)}"
        )
    return inputs
