"""Names that can be asked for: precisions, devices, tasks, formats."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from u2export.errors import InputError

NameT = TypeVar("NameT", bound="NamedEnum")


class NamedEnum(str, Enum):
    """An enumeration whose members are, and print as, their names."""

    def __str__(self) -> str:
        """Give the name."""
        return str(self.value)

    @classmethod
    def named(cls: type[NameT], name: str) -> NameT:
        """Look a member up.

        Raises:
            InputError: there is none of that name.
        """
        if name not in [str(member) for member in cls]:
            names = ", ".join(cls)
            raise InputError(f"{cls.__name__.lower()} must be one of {names}, got {name!r}")
        return cls(name)


class Precision(NamedEnum):
    """What the arithmetic is asked to run in; network input and output are always float32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


CALIBRATED = (Precision.BF16, Precision.INT8)  # whose weights are rounded by pictures


class Device(NamedEnum):
    """Where a runner computes: exactly there, or it refuses.

    `cuda` is an NVIDIA GPU; `gpu` is what OpenVINO calls so, an Intel GPU.
    """

    CPU = "cpu"
    CUDA = "cuda"
    GPU = "gpu"


class Architecture(NamedEnum):
    """The two published sizes of U²-Net."""

    FULL = "full"
    SMALL = "small"


class Task(NamedEnum):
    """What a set of weights was trained to find."""

    SALIENCY = "saliency"
    HUMAN = "human"
    PORTRAIT = "portrait"


class Refine(NamedEnum):
    """How a mask comes to the picture's size."""

    PLAIN = "plain"
    GUIDED = "guided"
    MATTING = "matting"


class Frames(NamedEnum):
    """Which pictures of a file that holds several are taken."""

    FIRST = "first"
    ALL = "all"


class Engine(NamedEnum):
    """What carries a run over many pictures."""

    LOCAL = "local"
    RAY = "ray"


class Format(NamedEnum):
    """What results are written as."""

    PNG = "png"
    WEBP = "webp"
    JPG = "jpg"


class Stage(NamedEnum):
    """A step of a picture's way to its result: the same words in logs, reports and docs."""

    READ = "read"  # the file's bytes, and its header
    DECODE = "decode"  # upright pixels
    PREPROCESS = "preprocess"  # the network's input
    INFER = "infer"  # the saliency
    POSTPROCESS = "postprocess"  # the stretched map, in [0,1]
    COMPOSE = "compose"  # the mask, or the cut-out, of the picture's size
    ENCODE = "encode"  # the result's file


class Resize(NamedEnum):
    """How a picture becomes the network's square input.

    `authors` is bilinear with half-pixel centres and no anti-aliasing; the others are Pillow's
    anti-aliased filters.
    """

    AUTHORS = "authors"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"
