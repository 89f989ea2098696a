"""Is a candidate nearer to a wrong pipeline than to its reference?

A budget for 8 bits or for half precision has room. Swapped channels or a shift by half a pixel can
hide in it on some pictures. But then the candidate's maps are nearer to those of the reference with
the same mistake, and rounding is not.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from u2export.compare.probe_images import Case, synthetic_cases
from u2export.compare.stages import Pipeline
from u2export.core.arrays import Array
from u2export.core.enums import Resize, Stage
from u2export.core.models import PictureSpec
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.parity.report import CaseResult

NAME = "nearer to the reference than to a mistake"
PICTURES = 2
# Rounding is no nearer to a mistake than this share of its distance to the reference.
_NEARER = 0.25
_Mistake: TypeAlias = Callable[[Array, PictureSpec], Array]


@dataclass(frozen=True)
class Lookalikes:
    """What the reference gives for a few pictures, rightly and with each mistake.

    Attributes:
        cases: the pictures.
        right: the reference's maps, (size,size) float32 each.
        wrong: its maps with a mistake, by the mistake's phrase.
    """

    cases: tuple[Case, ...]
    right: tuple[Array, ...]
    wrong: dict[str, tuple[Array, ...]]


def reference_lookalikes(reference: Pipeline) -> Lookalikes:
    """Run the reference on a few pictures, rightly and with each mistake.

    Args:
        reference: with its preprocessing, at the candidates' size.

    Raises:
        U2ExportError: it cannot be computed.
    """
    cases = tuple(synthetic_cases(PICTURES))
    wrong: dict[str, tuple[Array, ...]] = {}
    for case in cases:
        for phrase, x in _mistaken_inputs(case, reference.spec):
            wrong[phrase] = (*wrong.get(phrase, ()), reference.network(x))
    right = tuple(reference.network(_input(case, reference.spec)) for case in cases)
    return Lookalikes(cases, right, wrong)


def check_lookalikes(candidate: Pipeline, known: Lookalikes) -> CaseResult:
    """Compare a candidate with the reference and with the reference under each mistake.

    Args:
        candidate: its network and its own preprocessing.
        known: what the reference gives at the candidate's size.

    Raises:
        U2ExportError: the candidate cannot be computed.
    """
    maps = [candidate.network(_input(case, candidate.spec)) for case in known.cases]
    right = _distance(maps, known.right)
    distances = {phrase: _distance(maps, wrong) for phrase, wrong in known.wrong.items()}
    nearest = min(distances, key=lambda phrase: distances[phrase])
    reason = (
        f"its maps look like those of {nearest}: they differ by {distances[nearest]:.2g} from the "
        f"reference's with that mistake, and by {right:.2g} from the reference's"
    )
    passed = distances[nearest] >= _NEARER * right
    return CaseResult(
        name=NAME,
        kind="property",
        passed=passed,
        stage="" if passed else str(Stage.PREPROCESS),
        reasons=() if passed else (reason,),
    )


def _mistaken_inputs(case: Case, spec: PictureSpec) -> Iterator[tuple[str, Array]]:
    """Make the inputs that usual mistakes make of a picture, each with the mistake's phrase."""
    x = _input(case, spec)
    for phrase, mistake in _MISTAKES:
        yield phrase, np.ascontiguousarray(mistake(x, spec))
    for resize in Resize:
        if resize is not spec.resize:
            yield f"{resize} resizing", _input(case, dataclasses.replace(spec, resize=resize))


def _input(case: Case, spec: PictureSpec) -> Array:
    return preprocess(open_image(io.BytesIO(case.read())), spec)


def _distance(maps: Sequence[Array], others: Sequence[Array]) -> float:
    """Mean difference over all pictures."""
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(maps, others, strict=True)]))


def _swap_channels(x: Array, spec: PictureSpec) -> Array:
    return _normalise(_plain(x, spec)[:, ::-1], spec)


def _leave_out_mean_and_std(x: Array, spec: PictureSpec) -> Array:
    return _plain(x, spec)


def _shift(x: Array, pixels: int) -> Array:
    """Shift by half a pixel: down and to the right for 1, up and to the left for -1."""
    for axis in (2, 3):
        x = np.asarray((x + np.roll(x, pixels, axis)) / 2, np.float32)
    return x


def _plain(x: Array, spec: PictureSpec) -> Array:
    """Undo mean and standard deviation."""
    return x * _channels(spec.std) + _channels(spec.mean)


def _normalise(x: Array, spec: PictureSpec) -> Array:
    return (x - _channels(spec.mean)) / _channels(spec.std)


def _channels(values: tuple[float, float, float]) -> Array:
    return np.array(values, np.float32)[None, :, None, None]


_MISTAKES: tuple[tuple[str, _Mistake], ...] = (
    ("swapped channels", _swap_channels),
    ("channels swapped after normalization", lambda x, spec: x[:, ::-1]),
    ("mean and standard deviation left out", _leave_out_mean_and_std),
    ("a shift by half a pixel", lambda x, spec: _shift(x, 1)),
    ("a shift by half a pixel back", lambda x, spec: _shift(x, -1)),
    ("a mirrored picture", lambda x, spec: x[..., ::-1]),
    ("a picture upside down", lambda x, spec: x[:, :, ::-1]),
)
