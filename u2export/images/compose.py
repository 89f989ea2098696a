"""From a stretched saliency map to the result: a mask, a cut-out, or a subject on a background."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageFilter, ImageOps

from u2export.core.arrays import Array
from u2export.core.enums import Refine
from u2export.errors import InputError
from u2export.images import refine
from u2export.images.decode import composite_on_white, crop_image, open_image, round_to_uint8
from u2export.images.postprocess import BAND_ROWS, resize_to_mask
from u2export.system.documents import is_file

_Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
_MIN_ISLAND_SALIENCY = 0.1  # of a stretched map; fainter pixels belong to no island
_MIN_ISLAND_RATIO = 0.05  # of the largest island: smaller islands and holes are removed
_CROP_MARGIN = 0.02  # of the longer side, around a cropped subject
_MIN_CROP_ALPHA = 13  # of 255, 5 %: fainter pixels do not count for cropping


@dataclass(frozen=True)
class Composition:
    """What a result looks like.

    Attributes:
        cutout: the subject on transparency, instead of the mask.
        background: a colour or a picture behind the subject, instead of transparency.
        refine: how the mask is resized to the picture's size.
        threshold: of the mask, in [0,1]. Values from it on become 1, lower ones 0. None keeps the
            soft mask.
        feather: standard deviation of a blur of the mask's edge, in pixels.
        clean: remove small islands, and fill small holes.
        decontaminate: remove the background's colour from soft edges.
        crop: crop to the subject, with a small margin.
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
        """Check the values.

        Raises:
            InputError: a value is out of range, or a mask's colours are to be decontaminated.
        """
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(f"a threshold must be over 0 and at most 1, got {self.threshold:g}")
        if not 0 <= self.feather <= 1000:
            raise InputError(f"feather must be 0 to 1000 pixels, got {self.feather:g}")
        if self.decontaminate and not self.has_colours:
            raise InputError("a mask has no colours to clean: --decontaminate goes with --cutout")

    def check_packages(self) -> None:
        """Check that the packages that this needs are installed.

        Raises:
            DependencyError: one is not.
        """
        if self.clean or self.refine is not Refine.PLAIN:
            refine.require_package("scipy", "refine")
        if self.decontaminate or self.refine is Refine.MATTING:
            refine.require_package("pymatting", "matting")

    @property
    def has_colours(self) -> bool:
        """Whether the result shows the picture's colours."""
        return self.cutout or self.background is not None

    @property
    def needs_picture(self) -> bool:
        """Whether the picture's pixels are needed, not only its size."""
        return self.has_colours or self.refine is not Refine.PLAIN


MASK_ONLY = Composition()


def parse_background(text: str) -> tuple[int, int, int] | Image.Image:
    """Read a background: the path of a picture, or a colour such as `#fff`.

    Raises:
        InputError: it is neither.
    """
    if is_file(Path(text)):
        return composite_on_white(open_image(Path(text)))
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise InputError(
            f"the background {text!r} is neither a colour, such as white or #336699, nor a file"
        ) from error


def compose(
    saliency: Array,
    size: tuple[int, int],
    composition: Composition,
    picture: Image.Image | None = None,
) -> Image.Image:
    """Make the result of a stretched saliency map.

    Args:
        saliency: (H,W) float32 in [0,1], from `postprocess.stretch_saliency`.
        size: (width, height) of the picture, in pixels.
        composition: what the result looks like.
        picture: upright, RGB or RGBA; required if `composition.needs_picture`.

    Returns:
        Mode L for a mask, RGBA for a cut-out, RGB on a background.

    Raises:
        DependencyError: a required package is not installed.
        InputError: the picture is missing, or its matting does not converge.
    """
    mask = _final_mask(saliency, size, composition, picture)
    box = subject_box(mask) if composition.crop else None
    if not composition.has_colours:
        return crop_image(mask, box) if box else mask
    if picture is None:
        raise InputError("a cut-out needs the picture")
    if composition.decontaminate:
        picture = _decontaminated(picture, mask)
    if box:
        picture, mask = crop_image(picture, box), crop_image(mask, box)
    cutout = cut_out(picture, mask)
    background = composition.background
    return cutout if background is None else _on_background(cutout, background)


def _final_mask(
    saliency: Array,
    size: tuple[int, int],
    composition: Composition,
    picture: Image.Image | None,
) -> Image.Image:
    """The mask at the picture's size: cleaned, refined, thresholded and feathered."""
    if composition.clean:
        saliency = remove_specks(saliency)
    mask = _resized_mask(saliency, size, composition.refine, picture)
    if composition.threshold is not None:
        minimum = 255 * composition.threshold
        mask = mask.point([255 * (value >= minimum) for value in range(256)])
    if composition.feather:
        mask = mask.filter(ImageFilter.GaussianBlur(composition.feather))
    return mask


def _resized_mask(
    saliency: Array, size: tuple[int, int], method: Refine, picture: Image.Image | None
) -> Image.Image:
    if method is Refine.PLAIN or picture is None:
        return resize_to_mask(saliency, size)
    resize = refine.refine_guided if method is Refine.GUIDED else refine.refine_matting
    return resize(composite_on_white(picture), saliency)


def remove_specks(saliency: Array) -> Array:
    """Remove small islands of a saliency map, then fill small holes.

    Args:
        saliency: (H,W) float32 in [0,1].

    Raises:
        DependencyError: SciPy is not installed.
    """
    ndimage = refine.require_package("scipy.ndimage", "refine")
    islands, count = ndimage.label(saliency > _MIN_ISLAND_SALIENCY, np.ones((3, 3)))
    if not count:
        return saliency
    masses = ndimage.sum_labels(saliency, islands, np.arange(count + 1))
    masses[0] = 0  # label 0 is the background
    min_mass = _MIN_ISLAND_RATIO * masses.max()
    is_large = masses >= min_mass
    cleaned = np.where(is_large[islands], saliency, np.float32(0))
    holes, count = ndimage.label(cleaned < 1 - _MIN_ISLAND_SALIENCY)
    areas = ndimage.sum_labels(np.ones_like(cleaned), holes, np.arange(count + 1))
    edge = np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])
    is_small = areas < min_mass
    is_small[0] = False
    is_small[edge] = False  # a region that touches the picture's edge is background
    return np.where(is_small[holes], np.float32(1), cleaned).astype(np.float32)


def subject_box(mask: Image.Image) -> _Box | None:
    """The box around a mask's subject, with a margin; None where there is no subject."""
    visible = mask.point([255 * (value >= _MIN_CROP_ALPHA) for value in range(256)])
    box = visible.getbbox()
    if box is None:
        return None
    margin = round(_CROP_MARGIN * max(mask.size))
    left, top, right, bottom = box
    return (
        max(0, left - margin),
        max(0, top - margin),
        min(mask.width, right + margin),
        min(mask.height, bottom + margin),
    )


def _decontaminated(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with the subject's own colours at soft edges; its transparency is kept."""
    foreground = refine.decontaminate(composite_on_white(picture), mask)
    if picture.mode == "RGBA":
        foreground.putalpha(picture.getchannel("A"))
    return foreground


def cut_out(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Cut the subject out: the mask becomes the picture's transparency.

    Where the picture has transparency, the two are multiplied.

    Args:
        picture: upright, RGB or RGBA.
        mask: mode L, of the picture's size.

    Returns:
        Mode RGBA; invisible pixels are black.
    """
    width, height = picture.size
    cutout = np.empty((height, width, 4), np.uint8)
    for top in range(0, height, BAND_ROWS):
        box = (0, top, width, min(top + BAND_ROWS, height))
        piece, alpha = picture.crop(box), mask.crop(box)
        if piece.mode == "RGBA":
            own_alpha = np.asarray(piece.getchannel("A"), np.float32)
            alpha = Image.fromarray(round_to_uint8(own_alpha * np.asarray(alpha) / 255))
        piece.putalpha(alpha)
        band = cutout[top : box[3]]
        band[:] = np.asarray(piece)
        packed = band.view(np.uint32)  # the four bytes of a pixel as one number
        packed *= band[..., 3:] > 0
    return Image.frombuffer("RGBA", picture.size, cutout, "raw", "RGBA", 0, 1)


def _on_background(
    cutout: Image.Image, background: tuple[int, int, int] | Image.Image
) -> Image.Image:
    """Composite a cut-out onto a colour, or onto a picture that is scaled and cropped to fit."""
    if isinstance(background, Image.Image):
        result = ImageOps.fit(background, cutout.size)
    else:
        result = Image.new("RGB", cutout.size, background)
    result.paste(cutout, mask=cutout)
    return result
