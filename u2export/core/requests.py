"""Requests to export and to run, valid by construction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from u2export.core.enums import CALIBRATED, Device, Precision
from u2export.core.models import MAX_SIZE, MIN_SIZE, SIZE_STEP, ModelSpec
from u2export.errors import InputError

MAX_BATCH = 1024
MAX_THREADS = 1024  # runtimes start every thread they are told to, until the machine stands still
MAX_SIDE = 1_000_000  # pixels of a picture: rows of one pixel cost more than pixels do
MAX_PICTURE_BYTES = 1 << 30  # of a picture's file, where it is read whole
MAX_PIXELS = 100_000_000  # of a picture, unless allowed otherwise
RANDOM_PREFIX = "random:"  # what --weights takes instead of a file, followed by a seed
# 18 is what torch's exporter writes by itself; onnxruntime, OpenVINO and TensorRT 10/11 take it.
DEFAULT_OPSET = 18
OPSETS = range(16, 23)
MIN_IOU, MAX_MAE = 0.99, 0.004  # what int8 must keep of the masks, unless told otherwise


@dataclass(frozen=True)
class Quantization:
    """How int8 is to be found; of bf16 the pictures and the seed.

    Attributes:
        pictures: calibrate with these; drawn ones where there are none.
        min_iou: least mean IoU of the masks with float32's.
        max_mae: largest mean absolute difference of the masks, in [0,1].
        best_effort: write the best that was found even if it is not that good.
        seed: of all that is drawn at random.
    """

    pictures: tuple[Path, ...] = ()
    min_iou: float = MIN_IOU
    max_mae: float = MAX_MAE
    best_effort: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what can never be met."""
        if not 0 <= self.min_iou < 1:
            raise InputError(f"min-iou must be from 0 to below 1, got {self.min_iou:g}")
        if not 0 < self.max_mae <= 1:
            raise InputError(f"max-mae must be above 0 and at most 1, got {self.max_mae:g}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True)
class ExportSpec:
    """A request for an artifact.

    Attributes:
        model: which network and weights.
        size: side of the square input in pixels, a multiple of 32 from 32 to 2048.
        precision: what the arithmetic is asked to run in.
        batch: pictures per call, 1 to 1024, or None for a batch that is free at run time.
        all_outputs: the artifact gives d0..d6, d0 first, instead of d0 alone.
        opset: ONNX operator set, or None for the default.
        quantization: how int8, or the weights of bf16, are to be found.
        profile: smallest, typical and largest batch, for a runtime that wants them; the batch is
            free between the first and the last.
        backend_options: what only one backend knows, as (name, value), such as ("flavour", "rtx").
        variant: appended to the model's name in the file name, such as `random0`.
        name: of the file, without suffix, instead of one made from all this.
    """

    model: ModelSpec
    size: int
    precision: Precision = Precision.FP32
    batch: int | None = 1
    all_outputs: bool = False
    opset: int | None = None
    quantization: Quantization | None = None
    profile: tuple[int, int, int] | None = None
    backend_options: tuple[tuple[str, str], ...] = ()
    variant: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse what no exporter could build."""
        if self.size % SIZE_STEP or not MIN_SIZE <= self.size <= MAX_SIZE:
            raise InputError(
                f"size must be a multiple of {SIZE_STEP} from {MIN_SIZE} to {MAX_SIZE}, "
                f"got {self.size}"
            )
        if self.batch is not None and not 1 <= self.batch <= MAX_BATCH:
            raise InputError(f"batch must be 1 to {MAX_BATCH} or 'dynamic', got {self.batch}")
        if self.opset is not None and self.opset not in OPSETS:
            raise InputError(f"opset must be {min(OPSETS)} to {max(OPSETS)}, got {self.opset}")
        if self.profile is not None:
            _check_profile(self.profile, self.batch)
        if self.quantization is not None and self.precision not in CALIBRATED:
            raise InputError("calibration is of --int8 and --bf16: add one, or leave it out")

    @property
    def calibrated(self) -> Quantization:
        """How int8 or bf16 is to be found, by default where nothing was said of it."""
        return self.quantization or Quantization()

    def backend_option(self, name: str) -> str | None:
        """The value of a setting, or None where it was not given."""
        return dict(self.backend_options).get(name)

    @property
    def stem(self) -> str:
        """File name without suffix: model and precision, then whatever is not the default."""
        if self.name:
            return self.name
        parts = [self.model.name, self.variant, str(self.precision)]
        if self.size != self.model.picture.size:
            parts.append(str(self.size))
        if self.profile is not None:
            parts.append("b" + "-".join(map(str, self.profile)))
        elif self.batch != 1:
            parts.append(f"b{self.batch or 'N'}")
        if self.all_outputs:
            parts.append("all")
        if self.opset is not None and self.opset != DEFAULT_OPSET:
            parts.append(f"opset{self.opset}")
        parts.extend(value.lower().replace(",", "-") for _, value in self.backend_options)
        return "-".join(part for part in parts if part)


def _check_profile(profile: tuple[int, int, int], batch: int | None) -> None:
    low, typical, high = profile
    if batch is not None or not 1 <= low <= typical <= high <= MAX_BATCH:
        raise InputError(
            f"batch MIN:OPT:MAX must grow from 1 to {MAX_BATCH} at most, got {low}:{typical}:{high}"
        )


BatchProfile = tuple[int, int, int]


def parse_batch(text: str) -> tuple[int | None, BatchProfile | None]:
    """Read `--batch`: a whole number, `dynamic`, or `MIN:OPT:MAX`.

    Returns:
        The batch, None where it is free; and the profile, None where there is none.

    Raises:
        InputError: it is none of these.
    """
    if text == "dynamic":
        return None, None
    numbers = text.split(":")
    try:
        if len(numbers) == 3:
            low, typical, high = map(int, numbers)
            return None, (low, typical, high)
        return int(text), None
    except ValueError:
        raise InputError(
            f"batch must be 1 to {MAX_BATCH}, 'dynamic' or MIN:OPT:MAX, got {text!r}"
        ) from None


@dataclass(frozen=True)
class RunRequest:
    """How somebody wants artifacts to be run; the same request serves every backend.

    Attributes:
        device: where to compute, exactly there. None is the backend's first device.
        threads: for computation on the CPU. None is all that this process may use.
        precision: what the arithmetic must be. None is what the artifact says.
        streams: how many calls may run at once.
        compiled: PyTorch compiles the network.
    """

    device: Device | None = None
    threads: int | None = None
    precision: Precision | None = None
    streams: int = 1
    compiled: bool = False

    def __post_init__(self) -> None:
        """Refuse counts that no machine has.

        Raises:
            InputError: `threads` or `streams` is not 1 to `MAX_THREADS`.
        """
        for name, count in (("threads", self.threads), ("streams", self.streams)):
            if count is not None and not 1 <= count <= MAX_THREADS:
                raise InputError(f"{name} must be 1 to {MAX_THREADS}, got {count}")


@dataclass(frozen=True)
class RunSpec:
    """How one backend runs an artifact: a `RunRequest` with nothing left open.

    Attributes:
        device: where, exactly.
        threads: for computation on the CPU.
        precision: what the arithmetic must be, or None for what the artifact says. A CPU may then
            compute half precision that is only stored in float32.
        streams: how many calls may run at once, from `Runner.stream` or from as many threads. They
            share the threads for computation, so some may wait for others.
        compiled: PyTorch compiles the network.
    """

    device: Device
    threads: int
    precision: Precision | None = None
    streams: int = 1
    compiled: bool = False
