"""The model table: weights, architecture and preprocessing of each model."""

from __future__ import annotations

from dataclasses import dataclass

from u2export.core.enums import Architecture, Resize, Task
from u2export.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_SIZE, MAX_SIZE, SIZE_STEP = 32, 2048, 32


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


def _google_drive(file_id: str) -> Source:
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
                _google_drive("1ao1ovG1Qtx4b7EoskHXmi2E9rp5CHLcZ"),
            ),
        ),
        ModelSpec(
            "u2netp",
            Architecture.SMALL,
            Task.SALIENCY,
            "u2netp.pth",
            sha256="e7567cde013fb64813973ce6e1ecc25a80c05c3ca7adbc5a54f3c3d90991b854",
            sources=(_google_drive("1rbSTGKAE-MTxBYHd-51l2hMOQPT_7EPy"),),
        ),
        ModelSpec(
            "u2net_human_seg",
            Architecture.FULL,
            Task.HUMAN,
            "u2net_human_seg.pth",
            sources=(_google_drive("1-Yg0cxgrNhHP-016FPdp902BR-kSsA4P"),),
        ),
        ModelSpec(
            "u2net_portrait",
            Architecture.FULL,
            Task.PORTRAIT,
            "u2net_portrait.pth",
            picture=PictureSpec(size=512, inverted=True),
            sources=(_google_drive("1IG3HdpcRiDoWNookbncQjeaPN28t90yW"),),
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


def find_model(name: str) -> ModelSpec:
    """Look a model up in the table.

    Raises:
        InputError: there is no such model.
    """
    if name not in MODELS:
        raise InputError(f"no model is called {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name]
