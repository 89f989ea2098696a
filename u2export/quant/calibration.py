"""Pictures that calibrate 8 bits, in two halves: one to search on, one that only judges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from u2export.artifact import sha256_of
from u2export.backend import Array
from u2export.drawn import HELD_OUT, draw
from u2export.errors import InputError
from u2export.pipeline import open_picture, preprocess
from u2export.progress import say
from u2export.spec import PictureSpec

FEWEST = 8
DRAWN = tuple(range(HELD_OUT + 100, HELD_OUT + 116))  # seeds of drawn pictures that calibrate


@dataclass(frozen=True)
class Calibration:
    """Preprocessed pictures (1,3,H,W) float32 by the sha256 of each, in two halves.

    Attributes:
        searched: ranges, rounding and the choice of layers come from these.
        judged: these judge the result and nothing else.
        drawn: they are drawn by u2export.
    """

    searched: dict[str, Array]
    judged: dict[str, Array]
    drawn: bool


def prepare(paths: Sequence[Path], spec: PictureSpec) -> Calibration:
    """Read the pictures, or draw some where there are none.

    They are ordered by their hashes and dealt out in turns, so that their names and order play no
    part. A picture that is there twice counts once.

    Args:
        paths: picture files.
        spec: how the weights want them.

    Raises:
        InputError: fewer than 8, or one that cannot be read.
    """
    if not paths:
        say(
            "drawn pictures calibrate this: on photographs the mask will be worse than what is "
            "judged here; give some of your own with --calibration"
        )
        inputs = {_name(x): x for x in (preprocess(draw(seed).picture, spec) for seed in DRAWN)}
    else:
        inputs = _read({sha256_of(path): path for path in paths}, spec)
    names = sorted(inputs)
    searched, judged = ({name: inputs[name] for name in names[first::2]} for first in (0, 1))
    return Calibration(searched, judged, drawn=not paths)


def _name(x: Array) -> str:
    return hashlib.sha256(x.tobytes()).hexdigest()


def _read(paths: dict[str, Path], spec: PictureSpec) -> dict[str, Array]:
    found: dict[str, Array] = {}
    failed: list[str] = []
    for name, path in paths.items():
        try:
            found[name] = preprocess(open_picture(path), spec)
        except InputError as error:
            failed.append(str(error))
    if failed:
        more = f" ({len(failed) - 1} more cannot either)" if len(failed) > 1 else ""
        raise InputError(f"a calibration picture cannot be used: {failed[0]}{more}")
    if len(found) < FEWEST:
        raise InputError(
            f"calibration needs {FEWEST} different calibration pictures or more, got {len(found)}"
        )
    return found
