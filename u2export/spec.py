"""What can be asked for: precisions, devices, models and exports, valid by construction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from u2export.errors import InputError

Name = TypeVar("Name", bound="_Name")


class _Name(str, Enum):
    """An enumeration whose members are, and print as, their names."""

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def named(cls: type[Name], name: str) -> Name:
        """Look a member up.

        Raises:
            InputError: there is none of that name.
        """
        if name not in [str(member) for member in cls]:
            able = ", ".join(cls)
            raise InputError(f"{cls.__name__.lower()} must be one of {able}, got {name!r}")
        return cls(name)


class Precision(_Name):
    """What the arithmetic is asked to run in; network input and output are always float32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


CALIBRATED = (Precision.BF16, Precision.INT8)  # whose weights are rounded by pictures


class Device(_Name):
    """Where a runner computes: exactly there, or it refuses.

    `cuda` is an NVIDIA GPU; `gpu` is what OpenVINO calls so, an Intel GPU.
    """

    CPU = "cpu"
    CUDA = "cuda"
    GPU = "gpu"


class Architecture(_Name):
    """The two published sizes of U²-Net."""

    FULL = "full"
    SMALL = "small"


class Task(_Name):
    """What a set of weights was trained to find."""

    SALIENCY = "saliency"
    HUMAN = "human"
    PORTRAIT = "portrait"


class Refine(_Name):
    """How a mask comes to the picture's size."""

    PLAIN = "plain"
    GUIDED = "guided"
    MATTING = "matting"


class Engine(_Name):
    """What carries a run over many pictures."""

    LOCAL = "local"
    RAY = "ray"


class Format(_Name):
    """What results are written as."""

    PNG = "png"
    WEBP = "webp"
    JPG = "jpg"


class Resize(_Name):
    """How a picture becomes the network's square input.

    `authors` is bilinear with half-pixel centres and no anti-aliasing; the others are Pillow's
    anti-aliased filters.
    """

    AUTHORS = "authors"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


PARAMETERS = {Architecture.FULL: 44_009_869, Architecture.SMALL: 1_131_181}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_SIZE, MAX_SIZE, SIZE_STEP = 32, 2048, 32
MAX_BATCH = 1024
MAX_THREADS = 1024  # runtimes start every thread they are told to, until the machine stands still
MAX_PIXELS = 100_000_000  # of a picture, unless allowed otherwise
RANDOM = "random:"  # what --weights takes instead of a file, followed by a seed
# 18 is what torch's exporter writes by itself; onnxruntime, OpenVINO and TensorRT 10/11 take it.
DEFAULT_OPSET = 18
OPSETS = range(16, 23)
MIN_IOU, MAX_MAE = 0.99, 0.004  # what int8 must keep of the masks, unless told otherwise


@dataclass(frozen=True)
class Source:
    """One place a weights file can be fetched from: a `url`, or a Google Drive file `id`."""

    kind: str
    location: str


@dataclass(frozen=True)
class PictureSpec:
    """How a picture becomes the network's input, and the network's output a mask.

    Attributes:
        size: side of the square input, in pixels.
        mean: per channel R, G, B, taken off after division by the picture's largest value.
        std: per channel R, G, B, divided by after that.
        resize: how the picture is squashed to the square.
        inverted: the mask is one minus the network's output.
    """

    size: int = 320
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: Resize = Resize.AUTHORS
    inverted: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A set of weights and everything that belongs to it.

    Attributes:
        name: what `--model` takes.
        architecture: which of the two network sizes the weights fit.
        task: what the weights were trained to find.
        file: name of the weights file in `weights/` and in the cache.
        picture: the pre- and postprocessing the weights were trained with.
        sha256: of the published file; empty where none was published.
        licence: of the weights, and whom to credit.
        sources: where the file can be fetched from, tried in order.
        bundled: the weights are part of the package.
    """

    name: str
    architecture: Architecture
    task: Task
    file: str
    picture: PictureSpec = PictureSpec()
    sha256: str = ""
    licence: str = "Apache-2.0, Qin et al."
    sources: tuple[Source, ...] = ()
    bundled: bool = False

    @property
    def parameters(self) -> int:
        """Number of trainable values."""
        return PARAMETERS[self.architecture]


def _drive(file_id: str) -> Source:
    return Source("gdrive", file_id)


# Hashes and places: the authors' README (Google Drive) and the Hugging Face repository
# Carve/u2net-universal, whose full_weights.pth is the same file as the authors' u2net.pth.
MODELS = {
    model.name: model
    for model in (
        ModelSpec(
            "u2net",
            Architecture.FULL,
            Task.SALIENCY,
            "u2net.pth",
            sha256="10025a17f49cd3208afc342b589890e402ee63123d6f2d289a4a0903695cce58",
            sources=(
                Source(
                    "url",
                    "https://huggingface.co/Carve/u2net-universal/resolve/"
                    "10305d785481cf4b2eee1d447c39cd6e5f43d74b/full_weights.pth",
                ),
                _drive("1ao1ovG1Qtx4b7EoskHXmi2E9rp5CHLcZ"),
            ),
        ),
        ModelSpec(
            "u2netp",
            Architecture.SMALL,
            Task.SALIENCY,
            "u2netp.pth",
            sha256="e7567cde013fb64813973ce6e1ecc25a80c05c3ca7adbc5a54f3c3d90991b854",
            sources=(_drive("1rbSTGKAE-MTxBYHd-51l2hMOQPT_7EPy"),),
        ),
        ModelSpec(
            "u2net_human_seg",
            Architecture.FULL,
            Task.HUMAN,
            "u2net_human_seg.pth",
            sources=(_drive("1-Yg0cxgrNhHP-016FPdp902BR-kSsA4P"),),
        ),
        ModelSpec(
            "u2net_portrait",
            Architecture.FULL,
            Task.PORTRAIT,
            "u2net_portrait.pth",
            picture=PictureSpec(size=512, inverted=True),
            sources=(_drive("1IG3HdpcRiDoWNookbncQjeaPN28t90yW"),),
        ),
        ModelSpec(
            "u2netp-demo",
            Architecture.SMALL,
            Task.SALIENCY,
            "u2netp-demo.safetensors",
            sha256="22fee0d1fa0a906df31110a76a2398055df120676839f2bd2a3165c137cffe79",
            licence="Apache-2.0, u2export",
            bundled=True,
        ),
    )
}


def model_named(name: str) -> ModelSpec:
    """Look a model up in the table.

    Raises:
        InputError: there is no such model.
    """
    if name not in MODELS:
        raise InputError(f"no model is called {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name]


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
        settings: what only one backend knows, as (name, value), such as ("flavour", "rtx").
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
    settings: tuple[tuple[str, str], ...] = ()
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

    def setting(self, name: str) -> str | None:
        """The value of a setting, or None where it was not given."""
        return dict(self.settings).get(name)

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
        parts.extend(value.lower().replace(",", "-") for _, value in self.settings)
        return "-".join(part for part in parts if part)


def _check_profile(profile: tuple[int, int, int], batch: int | None) -> None:
    low, typical, high = profile
    if batch is not None or not 1 <= low <= typical <= high <= MAX_BATCH:
        raise InputError(
            f"batch MIN:OPT:MAX must grow from 1 to {MAX_BATCH} at most, got {low}:{typical}:{high}"
        )


Profile = tuple[int, int, int]


def parse_batch(text: str) -> tuple[int | None, Profile | None]:
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
class RunSpec:
    """How an artifact is to be run.

    Attributes:
        device: where, exactly.
        threads: for computation on the CPU.
        precision: what the arithmetic must be, or None for what the artifact says. Half precision
            that is only stored may then be computed in float32 on a CPU.
        streams: how many calls may be under way at once, from `Runner.stream` or from as many
            threads; they share the threads for computation, and some may wait for others.
        compiled: let PyTorch compile the network.
    """

    device: Device
    threads: int
    precision: Precision | None = None
    streams: int = 1
    compiled: bool = False
