"""What is made of a saliency map: a mask, a cut-out, a subject on another ground."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageFilter, ImageOps

from u2export import pipeline, refine
from u2export.backend import Array
from u2export.errors import InputError
from u2export.spec import Refine

SUPPORT = 0.1  # of a stretched map: what is fainter joins nothing
SPECK = 0.05  # of the largest subject: a smaller one, or a smaller hole, is not meant
MARGIN = 0.02  # of the longer side, left around a cropped subject
VISIBLE = 13  # of 255, 5 %: what is fainter is not looked at for cropping


@dataclass(frozen=True)
class Finish:
    """What results are to look like.

    Attributes:
        cutout: the subject on transparency, not the mask.
        background: a colour or a picture behind the subject, instead of transparency.
        refine: how the mask comes to the picture's size.
        threshold: of the mask, in [0,1]: from there on all is subject, below nothing; None keeps
            the soft mask.
        feather: pixels by which the mask's edge is blurred (standard deviation).
        clean: drop small islands, and fill small holes.
        decontaminate: take the ground's colour out of soft edges.
        crop: to the subject, with a small margin.
    """

    cutout: bool = False
    background: tuple[int, int, int] | Image.Image | None = None
    refine: Refine = Refine.PLAIN
    threshold: float | None = None
    feather: float = 0.0
    clean: bool = False
    decontaminate: bool = False
    crop: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            InputError: a value is out of its range, or asks for colours where there is a mask.
        """
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(f"a threshold must be over 0 and at most 1, got {self.threshold:g}")
        if not 0 <= self.feather <= 1000:
            raise InputError(f"feather must be 0 to 1000 pixels, got {self.feather:g}")
        if self.decontaminate and not self.coloured:
            raise InputError("a mask has no colours to clean: --decontaminate goes with --cutout")

    def require(self) -> None:
        """Make sure that what this needs is installed.

        Raises:
            DependencyError: it is not.
        """
        if self.clean or self.refine is not Refine.PLAIN:
            refine.require("scipy", "refine")
        if self.decontaminate or self.refine is Refine.MATTING:
            refine.require("pymatting", "matting")

    @property
    def coloured(self) -> bool:
        """Whether the result shows the picture's own colours."""
        return self.cutout or self.background is not None

    @property
    def looks(self) -> bool:
        """Whether it takes the whole picture, and not its size alone."""
        return self.coloured or self.refine is not Refine.PLAIN


MASK = Finish()


def background(text: str) -> tuple[int, int, int] | Image.Image:
    """Read what goes behind a subject: the file of a picture, or a colour such as `#fff`.

    Raises:
        InputError: it is neither.
    """
    if Path(text).is_file():
        return pipeline.opaque(pipeline.open_picture(Path(text)))
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise InputError(
            f"the background {text!r} is neither a colour, such as white or #336699, nor a file"
        ) from error


def finished(
    saliency: Array, size: tuple[int, int], wanted: Finish, picture: Image.Image | None = None
) -> Image.Image:
    """Make the result of a stretched map.

    Args:
        saliency: (H,W) float32 in [0,1], from `pipeline.stretch`.
        size: (width, height) of the picture.
        wanted: what it is to look like.
        picture: upright, RGB or RGBA, where `wanted.looks`.

    Returns:
        Mode L for a mask, RGBA for a cut-out, RGB on a background.

    Raises:
        DependencyError: a package that this needs is not installed.
    """
    if wanted.clean:
        saliency = cleaned(saliency)
    mask = _full_size(saliency, size, wanted.refine, picture)
    if wanted.threshold is not None:
        least = 255 * wanted.threshold
        mask = mask.point([255 * (value >= least) for value in range(256)])
    if wanted.feather:
        mask = mask.filter(ImageFilter.GaussianBlur(wanted.feather))
    box = subject_box(mask) if wanted.crop else None
    if not wanted.coloured:
        return pipeline.cropped(mask, box) if box else mask
    if picture is None:
        raise InputError("a cut-out needs the picture")
    if wanted.decontaminate:
        own = refine.decontaminated(pipeline.opaque(picture), mask)
        if picture.mode == "RGBA":
            own.putalpha(picture.getchannel("A"))
        picture = own
    if box:
        picture, mask = pipeline.cropped(picture, box), pipeline.cropped(mask, box)
    cut = pipeline.cut_out(picture, mask)
    return cut if wanted.background is None else _on(cut, wanted.background)


def _full_size(
    saliency: Array, size: tuple[int, int], how: Refine, picture: Image.Image | None
) -> Image.Image:
    if how is Refine.PLAIN or picture is None:
        return pipeline.enlarge(saliency, size)
    grow = refine.guided if how is Refine.GUIDED else refine.matted
    return grow(pipeline.opaque(picture), saliency)


def cleaned(saliency: Array) -> Array:
    """Drop small islands of a map, and fill small holes in what is left.

    Args:
        saliency: (H,W) float32 in [0,1].

    Raises:
        DependencyError: SciPy is not installed.
    """
    ndimage = refine.require("scipy.ndimage", "refine")
    islands, count = ndimage.label(saliency > SUPPORT, np.ones((3, 3)))
    if not count:
        return saliency
    weights = ndimage.sum_labels(saliency, islands, np.arange(count + 1))
    weights[0] = 0
    large = weights >= SPECK * weights.max()
    kept = np.where(large[islands], saliency, np.float32(0))
    holes, count = ndimage.label(kept < 1 - SUPPORT)
    areas = ndimage.sum_labels(np.ones_like(kept), holes, np.arange(count + 1))
    edge = np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])
    small = areas < SPECK * weights.max()
    small[0] = False
    small[edge] = False  # what reaches the picture's edge is ground
    return np.where(small[holes], np.float32(1), kept).astype(np.float32)


def subject_box(mask: Image.Image) -> tuple[int, int, int, int] | None:
    """The box around a mask's subject with its margin, or None where there is no subject."""
    found = mask.point([255 * (value >= VISIBLE) for value in range(256)]).getbbox()
    if found is None:
        return None
    margin = round(MARGIN * max(mask.size))
    left, top, right, bottom = found
    return (
        max(0, left - margin),
        max(0, top - margin),
        min(mask.width, right + margin),
        min(mask.height, bottom + margin),
    )


def _on(cut: Image.Image, ground: tuple[int, int, int] | Image.Image) -> Image.Image:
    """Put a cut-out onto a colour, or onto a picture that is scaled to cover and cropped."""
    if isinstance(ground, Image.Image):
        result = ImageOps.fit(ground, cut.size)
    else:
        result = Image.new("RGB", cut.size, ground)
    result.paste(cut, mask=cut)
    return result
