"""Pictures drawn by a program, each with the exact mask of its subjects.

They train the bundled demo weights, and stand in for photographs where none may be assumed: in the
check an export passes, and in tests. Seeds below `HELD_OUT` are for training; those from it on are
for judging and are never trained on.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

HELD_OUT = 1_000_000
Field = NDArray[np.float32]
Size = tuple[int, int]
_OVERSAMPLING = 2  # shapes are drawn at twice the size, for soft edges


class Drawn(NamedTuple):
    """A drawn picture (mode RGB) and its mask (mode L, 255 is subject), of one size."""

    picture: Image.Image
    mask: Image.Image


def draw(seed: int, size: Size = (320, 320), *, subjects: int | None = None) -> Drawn:
    """Draw a picture of one to three subjects on a cluttered, unevenly lit ground.

    Args:
        seed: the same seed and size give the same pixels.
        size: (width, height) in pixels, 16 or more each.
        subjects: how many; 0 draws the ground alone, None lets the seed choose.

    Returns:
        The picture and its mask; the subjects cover about 5 to 65 percent of it.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 1, 1, 2, 2, 3])) if subjects is None else subjects
    dark, light = _colours(rng)
    tone: Field = np.asarray((dark + light) / 2, np.float32)
    ground = _cluttered(rng, _textured(rng, size, dark, light), tone)
    mask = Image.new("L", size)
    picture = ground
    for _ in range(count):
        shape = _shape(rng, size, count)
        picture = _shadowed(rng, picture, shape)
        paint = _textured(rng, size, *_colours(rng, away_from=tone))
        picture = Image.composite(_shaded(rng, paint), picture, shape)
        mask = ImageChops.lighter(mask, shape)
    return Drawn(_photographed(rng, picture), mask)


def _colours(rng: np.random.Generator, away_from: Field | None = None) -> tuple[Field, Field]:
    """Two colours for one texture, 0 to 255; clearly or, now and then, barely off another."""
    least = 0.0 if away_from is None else float(rng.choice([45, 80, 110]))
    while True:
        first = rng.uniform(10, 245, 3).astype(np.float32)
        if away_from is None or float(np.abs(first - away_from).mean()) >= least * 0.75:
            break
    spread = rng.uniform(5, 70)
    second = np.clip(first + rng.normal(0, spread, 3), 0, 255).astype(np.float32)
    return first, second


def _textured(rng: np.random.Generator, size: Size, first: Field, second: Field) -> Image.Image:
    t = _FIELDS[int(rng.integers(len(_FIELDS)))](rng, size)[..., None]
    pixels = first + (second - first) * t
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _gradient(rng: np.random.Generator, size: Size) -> Field:
    u, v = _axes(size)
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * u + math.sin(angle) * v
    return np.asarray((along + 1) / 2, np.float32)


def _glow(rng: np.random.Generator, size: Size) -> Field:
    u, v = _axes(size)
    x, y = rng.uniform(-1, 1, 2)
    return np.asarray(np.exp(-((u - x) ** 2 + (v - y) ** 2) * rng.uniform(0.4, 2)), np.float32)


def _noise(rng: np.random.Generator, size: Size) -> Field:
    """Smooth noise of three scales."""
    total = np.zeros((size[1], size[0]), np.float32)
    cells = int(rng.integers(2, 10))
    for octave in range(3):
        n = min(cells * 2**octave, *size)
        coarse = Image.fromarray(rng.random((n, n), np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / 2**octave
    return np.asarray(np.clip(total / 1.75, 0, 1), np.float32)


def _stripes(rng: np.random.Generator, size: Size) -> Field:
    u, v = _axes(size)
    angle, waves = rng.uniform(0, math.pi), rng.uniform(3, 25)
    along = math.cos(angle) * u + math.sin(angle) * v
    bend = rng.uniform(0, 0.3) * np.sin(3 * (u - v))
    return np.asarray(0.5 + 0.5 * np.sin(waves * math.pi * (along + bend)), np.float32)


def _checks(rng: np.random.Generator, size: Size) -> Field:
    u, v = _axes(size)
    waves = rng.uniform(2, 12)
    cells = np.floor(u * waves) + np.floor(v * waves)
    return np.asarray(cells % 2, np.float32)


def _speckle(rng: np.random.Generator, size: Size) -> Field:
    fine = rng.random((size[1], size[0]), np.float32)
    return np.asarray(0.5 * fine + 0.5 * _noise(rng, size), np.float32)


_FIELDS = (_gradient, _glow, _noise, _noise, _stripes, _checks, _speckle)


def _axes(size: Size) -> tuple[Field, Field]:
    """Coordinates from -1 to 1: across (1,W) and down (H,1)."""
    u = np.linspace(-1, 1, size[0], dtype=np.float32)[None]
    v = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None]
    return u, v


def _cluttered(rng: np.random.Generator, ground: Image.Image, tone: Field) -> Image.Image:
    """Add lines and small shapes in colours near the ground's own; none of them is a subject."""
    pen = ImageDraw.Draw(ground)
    width, height = ground.size
    unit = min(width, height)
    for _ in range(int(rng.integers(0, 14))):
        colour = tuple(int(c) for c in np.clip(tone + rng.normal(0, 28, 3), 0, 255))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        r = rng.uniform(0.01, 0.06) * unit
        kind = int(rng.integers(3))
        if kind == 0:
            angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.2) * unit
            end = (x + length * math.cos(angle), y + length * math.sin(angle))
            pen.line([(x, y), end], fill=colour, width=max(1, int(unit * 0.008)))
        elif kind == 1:
            pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
        else:
            pen.rectangle([x - r, y - r * 0.6, x + r, y + r * 0.6], fill=colour)
    return ground


def _shape(rng: np.random.Generator, size: Size, count: int) -> Image.Image:
    """The mask of one subject, drawn large enough to matter; holes are cut out."""
    big = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    canvas = Image.new("L", big)
    pen = ImageDraw.Draw(canvas)
    unit = min(big)
    reach = float(rng.uniform(0.22, 0.42)) / math.sqrt(count)
    x, y = (float(rng.uniform(0.25, 0.75)) * side for side in big)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        outline = _outline(rng, x, y, reach * unit)
        pen.polygon(outline, fill=255)
        x += float(rng.uniform(-0.8, 0.8)) * reach * unit
        y += float(rng.uniform(-0.8, 0.8)) * reach * unit
    if rng.random() < 0.12:
        cx, cy = np.mean(outline, axis=0)
        hole = _outline(rng, float(cx), float(cy), reach * unit * 0.4)
        pen.polygon(hole, fill=0)
    return canvas.resize(size, Image.Resampling.BOX)


def _outline(
    rng: np.random.Generator, x: float, y: float, reach: float
) -> list[tuple[float, float]]:
    """A closed line around a point: ellipse, polygon, blob or star, turned and squeezed."""
    kind = int(rng.integers(4))
    angles = np.linspace(0, 2 * math.pi, 96, endpoint=False)
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
    turn, squeeze = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1)
    a, b = radii * np.cos(angles), radii * np.sin(angles) * squeeze
    across = x + reach * (a * math.cos(turn) - b * math.sin(turn))
    down = y + reach * (a * math.sin(turn) + b * math.cos(turn))
    return list(zip(across.tolist(), down.tolist(), strict=True))


def _shadowed(rng: np.random.Generator, picture: Image.Image, shape: Image.Image) -> Image.Image:
    """Let the subject throw a soft shadow."""
    if rng.random() < 0.4:
        return picture
    unit = min(picture.size)
    x, y = (int(d) for d in rng.uniform(-0.06, 0.06, 2) * unit)
    shadow = ImageChops.offset(shape, x, y).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(0.01, 0.05)) * unit)
    )
    strength = float(rng.uniform(0.2, 0.6))
    dark = picture.point([int(v * (1 - strength)) for v in range(256)] * 3)
    return Image.composite(dark, picture, shadow)


def _shaded(rng: np.random.Generator, paint: Image.Image) -> Image.Image:
    """Light the paint from one side."""
    light = 1 + rng.uniform(0, 0.5) * (_gradient(rng, paint.size) - 0.5)
    return Image.fromarray(np.clip(np.asarray(paint) * light[..., None], 0, 255).astype(np.uint8))


def _photographed(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Uneven light, slight blur, grain and compression, as a camera leaves them."""
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
