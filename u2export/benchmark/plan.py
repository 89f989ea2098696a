"""The plan of a benchmark: what it measures, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from u2export.core import registry
from u2export.core.requests import RunRequest
from u2export.errors import InputError
from u2export.images.decode import check_image
from u2export.images.synthetic import draw_image

TORCH_REFERENCE = "torch"
DEFAULT_SECONDS = 30.0  # of measuring in rounds, all rows together
SYNTHETIC_SEEDS = range(3_000_000, 3_000_004)  # pictures if the user names none
SYNTHETIC_SIZE = (1280, 960)  # width and height, pixels
MAX_PICTURES = 24  # a worker keeps this many in memory


@dataclass(frozen=True)
class BenchmarkPlan:
    """What a benchmark measures, and how.

    Attributes:
        artifacts: model files.
        pictures: the user's picture files.
        reference: a model file, or `torch` for the weights that the artifacts were made from.
        weights: value of `--weights`, if the reference is `torch`.
        model: name of the model, for files that u2export did not make.
        run: how to run the artifacts.
        batches: pictures per call, for files that allow them; by default the smallest batch.
        seconds: duration of measuring in rounds, all rows together.
        baseline: name of the row that ratios refer to; by default the first row.
        delays: for each artifact, the share of its time that every call sleeps in addition. This
            proves that the benchmark detects a slowdown.
        command: the command line.
    """

    artifacts: tuple[Path, ...]
    pictures: tuple[Path, ...] = ()
    reference: str = TORCH_REFERENCE
    weights: str | None = None
    model: str | None = None
    run: RunRequest = field(default_factory=RunRequest)
    batches: tuple[int, ...] = ()
    seconds: float = DEFAULT_SECONDS
    baseline: str | None = None
    delays: tuple[float, ...] = ()
    command: str = ""


def parse_slowdown(text: str) -> float:
    """Parse a fraction such as `10%` or `0.1`.

    Raises:
        InputError: it is no fraction, or below 0.
    """
    try:
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction < float("inf"):
        raise InputError(f"a slowdown is a share such as 10%, got {text!r}")
    return fraction


def parse_sizes(text: str | None) -> tuple[int, ...]:
    """Parse sizes such as `320,256`, without duplicates.

    Raises:
        InputError: they are no integers above 0.
    """
    return _parse_integers(text, "sizes are whole numbers above 0, such as 320,256")


def parse_batches(text: str | None) -> tuple[int, ...]:
    """Parse batch sizes such as `1,4,8`, without duplicates.

    Raises:
        InputError: they are no integers above 0.
    """
    return _parse_integers(text, "batches are whole numbers above 0, such as 1,4,8")


def _parse_integers(text: str | None, expectation: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise InputError(f"{expectation}; got {text!r}")
    return tuple(dict.fromkeys(numbers))


def check_plan(plan: BenchmarkPlan) -> None:
    """Check a plan before the work begins.

    Raises:
        InputError: nothing to measure, a wrong value, an unreadable picture, or two files of one
            name.
        ArtifactError: the reference was changed.
    """
    if not plan.artifacts:
        raise InputError("there is nothing to measure: name a model file")
    if not plan.seconds > 0:
        raise InputError(f"the duration must be above 0 seconds, got {plan.seconds:g}")
    if any(batch < 1 for batch in plan.batches):
        raise InputError(f"a batch must be 1 or more, got {min(plan.batches)}")
    for path in plan.pictures[:MAX_PICTURES]:
        check_image(path)
    if plan.reference != TORCH_REFERENCE:
        registry.open_artifact(Path(plan.reference), plan.model)
    _check_names(plan)


def _check_names(plan: BenchmarkPlan) -> None:
    names = [path.name for path in plan.artifacts]
    duplicate = next((name for name in names if names.count(name) > 1 and not plan.delays), None)
    if duplicate:
        raise InputError(
            f"two model files are called {duplicate}: rename one, rows go by their names"
        )


def write_synthetic_images(folder: Path) -> tuple[Path, ...]:
    """Write the pictures that are used if the user names none; return their paths."""
    paths = []
    for seed in SYNTHETIC_SEEDS:
        paths.append(folder / f"drawn-{seed}.jpg")
        draw_image(seed, SYNTHETIC_SIZE).picture.save(paths[-1], quality=92)
    return tuple(paths)
