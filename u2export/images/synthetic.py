"""Synthetic pictures with exact masks.

They train the bundled demo weights. They also replace photographs: in the check that an export must
pass, and in tests. Seeds below `HELD_OUT_SEED` are for training. Seeds
from it on are for evaluation, and are never trained on.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

HELD_OUT_SEED = 1_000_000
_Field = NDArray[np.float32]  # (H,W), one value a pixel, about 0 to 1
_Colour = NDArray[np.float32]  # (3,), R, G, B, 0 to 255
_Size = tuple[int, int]  # (width, height) in pixels
_Point = tuple[float, float]  # (x, y) in pixels
_OVERSAMPLING = 2  # shapes are drawn at twice the size, for soft edges


class SyntheticImage(NamedTuple):
    """A picture and its mask, of one size.

    Attributes:
        picture: mode RGB.
        mask: mode L; 255 is subject.
    """

    picture: Image.Image
    mask: Image.Image


def draw_image(
    seed: int, size: _Size = (320, 320), *, subjects: int | None = None
) -> SyntheticImage:
    """Draw a picture of one to three subjects on a cluttered, unevenly lit background.

    Args:
        seed: the same seed and size give the same pixels.
        size: (width, height) in pixels, 16 or more each.
        subjects: how many; 0 draws the background alone, None lets the seed choose.

    Returns:
        The picture and its mask; the subjects cover about 5 to 65 percent of it.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 1, 1, 2, 2, 3])) if subjects is None else subjects
    dark, light = _random_colours(rng)
    background_colour: _Colour = np.asarray((dark + light) / 2, np.float32)
    picture = _add_clutter(rng, _textured(rng, size, dark, light), background_colour)
    mask = Image.new("L", size)
    for _ in range(count):
        shape = _subject_mask(rng, size, count)
        picture = _add_shadow(rng, picture, shape)
        texture = _textured(rng, size, *_random_colours(rng, away_from=background_colour))
        picture = Image.composite(_shade(rng, texture), picture, shape)
        mask = ImageChops.lighter(mask, shape)
    return SyntheticImage(_simulate_camera(rng, picture), mask)


def _random_colours(
    rng: np.random.Generator, away_from: _Colour | None = None
) -> tuple[_Colour, _Colour]:
    """Choose two colours for a texture.

    The first differs from `away_from`: usually clearly, sometimes barely.
    """
    contrast = 0.0 if away_from is None else float(rng.choice([45, 80, 110]))
    while True:
        first = rng.uniform(10, 245, 3).astype(np.float32)
        if away_from is None or float(np.abs(first - away_from).mean()) >= contrast * 0.75:
            break
    spread = rng.uniform(5, 70)
    second = np.clip(first + rng.normal(0, spread, 3), 0, 255).astype(np.float32)
    return first, second


def _textured(
    rng: np.random.Generator, size: _Size, first: _Colour, second: _Colour
) -> Image.Image:
    """Fill a picture with a random texture that blends two colours."""
    texture = _TEXTURES[int(rng.integers(len(_TEXTURES)))]
    weights = texture(rng, size)[..., None]
    pixels = first + (second - first) * weights
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _gradient(rng: np.random.Generator, size: _Size) -> _Field:
    u, v = _axes(size)
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * u + math.sin(angle) * v
    return np.asarray((along + 1) / 2, np.float32)


def _glow(rng: np.random.Generator, size: _Size) -> _Field:
    u, v = _axes(size)
    x, y = rng.uniform(-1, 1, 2)
    return np.asarray(np.exp(-((u - x) ** 2 + (v - y) ** 2) * rng.uniform(0.4, 2)), np.float32)


def _noise(rng: np.random.Generator, size: _Size) -> _Field:
    """Smooth noise at three scales."""
    total = np.zeros((size[1], size[0]), np.float32)
    cells = int(rng.integers(2, 10))
    for octave in range(3):
        side = min(cells * 2**octave, *size)
        coarse = Image.fromarray(rng.random((side, side), np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / 2**octave
    return np.asarray(np.clip(total / 1.75, 0, 1), np.float32)


def _stripes(rng: np.random.Generator, size: _Size) -> _Field:
    u, v = _axes(size)
    angle, waves = rng.uniform(0, math.pi), rng.uniform(3, 25)
    along = math.cos(angle) * u + math.sin(angle) * v
    bend = rng.uniform(0, 0.3) * np.sin(3 * (u - v))
    return np.asarray(0.5 + 0.5 * np.sin(waves * math.pi * (along + bend)), np.float32)


def _checkerboard(rng: np.random.Generator, size: _Size) -> _Field:
    u, v = _axes(size)
    waves = rng.uniform(2, 12)
    cells = np.floor(u * waves) + np.floor(v * waves)
    return np.asarray(cells % 2, np.float32)


def _speckle(rng: np.random.Generator, size: _Size) -> _Field:
    grain = rng.random((size[1], size[0]), np.float32)
    return np.asarray(0.5 * grain + 0.5 * _noise(rng, size), np.float32)


_TEXTURES = (_gradient, _glow, _noise, _noise, _stripes, _checkerboard, _speckle)


def _axes(size: _Size) -> tuple[_Field, _Field]:
    """Coordinates from -1 to 1: horizontal (1,W) and vertical (H,1)."""
    u = np.linspace(-1, 1, size[0], dtype=np.float32)[None]
    v = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None]
    return u, v


def _add_clutter(rng: np.random.Generator, background: Image.Image, colour: _Colour) -> Image.Image:
    """Draw lines and small shapes in colours near the background's; none is a subject."""
    draw = ImageDraw.Draw(background)
    width, height = background.size
    unit = min(width, height)
    for _ in range(int(rng.integers(0, 14))):
        fill = tuple(int(c) for c in np.clip(colour + rng.normal(0, 28, 3), 0, 255))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(0.01, 0.06) * unit
        kind = int(rng.integers(3))
        if kind == 0:
            angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.2) * unit
            end = (x + length * math.cos(angle), y + length * math.sin(angle))
            draw.line([(x, y), end], fill=fill, width=max(1, int(unit * 0.008)))
        elif kind == 1:
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
        else:
            half = radius * 0.6
            draw.rectangle([x - radius, y - half, x + radius, y + half], fill=fill)
    return background


def _subject_mask(rng: np.random.Generator, size: _Size, count: int) -> Image.Image:
    """Draw the mask of one subject: one to three overlapping shapes, sometimes with a hole.

    Args:
        rng: of the picture.
        size: (width, height) in pixels.
        count: subjects of the picture; more subjects are smaller.

    Returns:
        Mode L; 255 is subject.
    """
    large_size = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    mask = Image.new("L", large_size)
    draw = ImageDraw.Draw(mask)
    unit = min(large_size)
    scale = float(rng.uniform(0.22, 0.42)) / math.sqrt(count)
    radius = scale * unit
    x, y = (float(rng.uniform(0.25, 0.75)) * side for side in large_size)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        outline = _random_outline(rng, (x, y), radius)
        draw.polygon(outline, fill=255)
        # `radius` instead of the two factors would round differently, and change pixels
        x += float(rng.uniform(-0.8, 0.8)) * scale * unit
        y += float(rng.uniform(-0.8, 0.8)) * scale * unit
    if rng.random() < 0.12:
        centre_x, centre_y = np.mean(outline, axis=0)
        hole = _random_outline(rng, (float(centre_x), float(centre_y)), radius * 0.4)
        draw.polygon(hole, fill=0)
    return mask.resize(size, Image.Resampling.BOX)


def _random_outline(rng: np.random.Generator, centre: _Point, radius: float) -> list[_Point]:
    """A closed outline: an ellipse, polygon, blob or star, rotated and squeezed."""
    angles = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    radii = _random_radii(rng, angles)
    rotation, squeeze = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1)
    a, b = radii * np.cos(angles), radii * np.sin(angles) * squeeze
    x = centre[0] + radius * (a * math.cos(rotation) - b * math.sin(rotation))
    y = centre[1] + radius * (a * math.sin(rotation) + b * math.cos(rotation))
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _random_radii(rng: np.random.Generator, angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The radius of a random shape at each angle, about 1."""
    kind = int(rng.integers(4))
    radii = np.ones_like(angles)
    if kind == 1:
        corners = int(rng.integers(3, 8))
        step = 2 * math.pi / corners
        radii = math.cos(step / 2) / np.cos(angles % step - step / 2)
    elif kind == 2:
        for wave in range(2, 7):
            radii += rng.normal(0, 0.28 / wave) * np.cos(wave * angles + rng.uniform(0, 6.28))
    elif kind == 3:
        radii += 0.3 * np.cos(int(rng.integers(3, 9)) * angles)
    return radii


def _add_shadow(rng: np.random.Generator, picture: Image.Image, shape: Image.Image) -> Image.Image:
    """Add a soft shadow of the subject, to most pictures."""
    if rng.random() < 0.4:
        return picture
    unit = min(picture.size)
    x, y = (int(offset) for offset in rng.uniform(-0.06, 0.06, 2) * unit)
    shadow = ImageChops.offset(shape, x, y).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(0.01, 0.05)) * unit)
    )
    strength = float(rng.uniform(0.2, 0.6))
    darkened = picture.point([int(value * (1 - strength)) for value in range(256)] * 3)
    return Image.composite(darkened, picture, shadow)


def _shade(rng: np.random.Generator, texture: Image.Image) -> Image.Image:
    """Light a texture from one direction."""
    light = 1 + rng.uniform(0, 0.5) * (_gradient(rng, texture.size) - 0.5)
    pixels = np.asarray(texture) * light[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _simulate_camera(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Add what a camera adds: uneven light, slight blur, grain and JPEG compression."""
    light = 1 + rng.uniform(0, 0.6) * (_glow(rng, picture.size) - 0.5)
    pixels = np.asarray(picture) * light[..., None]
    pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * rng.uniform(0, 9)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        blur = float(rng.uniform(0.2, 0.004 * min(picture.size) + 0.2))
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(45, 95)))
        picture = Image.open(buffer).convert("RGB")
    return picture
