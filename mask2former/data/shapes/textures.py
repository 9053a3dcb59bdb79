"""Textures: of stuff, which cover a region, and of things, which are a small tile that moves with the thing.

What tells a class is its pattern: colors are drawn from wide ranges that overlap between classes.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import cv2
import numpy as np

TILE = 48
"""Height and width of the tile of a thing, whose outline lies in a circle around its center."""

Texture = Callable[[np.random.Generator, int, int], np.ndarray]


# ------------------------------------------------------------------ noise
def white_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return float32 (height, width) independent values in [-1, 1]."""
    return cv2.LUT(noise_bytes(rng, height, width), _SIGNED)


def noise_bytes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return uint8 (height, width) independent values."""
    return np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width)


_SIGNED = np.linspace(-1, 1, 256, dtype=np.float32)


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, cell: float | tuple[float, float], octaves: int = 1
) -> np.ndarray:
    """Return float32 (height, width) noise, about -1 to 1 in its first octave.

    Args:
        rng: source of the values.
        height, width: size in pixels.
        cell: size of its blots in pixels, at least 1; the same in both directions or (down, across).
        octaves: layers that are added up; each has half the cell and half the strength of the one before.
    """
    down, across = cell if isinstance(cell, tuple) else (cell, cell)
    finest = 2 ** (octaves - 1)
    step_y, step_x = max(1.0, down / finest), max(1.0, across / finest)
    shapes = [(math.ceil(height / step_y) + 2, math.ceil(width / step_x) + 2)]
    for _ in range(octaves - 1):
        shapes.append((shapes[-1][0] // 2 + 2, shapes[-1][1] // 2 + 2))
    # From coarse to fine, each grid twice as large as the one before, so that only the last step has the full size.
    field = white_noise(rng, *shapes[-1])
    for number, (rows, columns) in enumerate(reversed(shapes[:-1]), start=1):
        twice = _enlarged(field, 2 * field.shape[0], 2 * field.shape[1])[1:, 1:][:rows, :columns]
        field = cv2.scaleAdd(white_noise(rng, rows, columns), 0.5**number, twice)
    full = _enlarged(field, round(field.shape[0] * step_y), round(field.shape[1] * step_x))
    # The border repeats the outermost values, which would show.
    return full[int(step_y / 2) :, int(step_x / 2) :][:height, :width]


def _enlarged(field: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)


# ------------------------------------------------------------------ colors
def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return the float32 RGB color, 0 to 255, of a hue in degrees; saturation and value are clipped to [0, 1]."""
    rgb = colorsys.hsv_to_rgb(hue / 360 % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return np.array(rgb, np.float32) * 255


def _blend(pattern: np.ndarray, dark: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return float32 (H, W, 3): `dark` where the pattern (H, W) is 0, `light` where it is 1."""
    return cv2.merge([cv2.addWeighted(pattern, float(b - a), pattern, 0.0, float(a)) for a, b in zip(dark, light)])


# ------------------------------------------------------------------ stuff
def _sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    kind = rng.random()
    hue = rng.uniform(190, 235) if kind < 0.6 else rng.uniform(-20, 45) if kind < 0.85 else rng.uniform(0, 360)
    saturation = rng.uniform(0.25, 0.75) if kind < 0.85 else rng.uniform(0.02, 0.15)
    value = rng.uniform(0.45, 0.95)
    slope = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    color = _blend(slope, hsv(hue, saturation, value), hsv(hue + rng.uniform(-15, 15), saturation * 0.45, value + 0.2))
    size = rng.uniform(0.12, 0.3) * max(height, width)
    clouds = smooth_noise(rng, height, width, (max(3.0, size * 0.5), max(4.0, size)), 3)
    clouds = np.clip((clouds - rng.uniform(-0.1, 0.5)) * 1.1, 0, 0.85)[..., None]
    return color + (hsv(hue, 0.06, min(1.0, value + 0.3)) - color) * clouds


def _grass(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    hue, saturation, value = rng.uniform(45, 150), rng.uniform(0.3, 0.85), rng.uniform(0.35, 0.75)
    length = rng.uniform(5, 9)
    blades = smooth_noise(rng, height, width, (length, 1.3)) + 0.6 * smooth_noise(rng, height, width, (length * 2, 2.6))
    tufts = smooth_noise(rng, height, width, rng.uniform(14, 30))
    pattern = 0.5 + 0.32 * blades + 0.18 * tufts
    return _blend(pattern, hsv(hue + 12, saturation, value * 0.4), hsv(hue - 8, saturation * 0.85, value * 1.15))


def _water(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    hue, saturation, value = rng.uniform(150, 245), rng.uniform(0.15, 0.8), rng.uniform(0.35, 0.8)
    if rng.random() < 0.15:
        hue = rng.uniform(30, 60)  # a muddy river
    length = rng.uniform(7, 13)
    bend = smooth_noise(rng, height, width, (length * 1.6, length * 2.4))
    rows = np.arange(height, dtype=np.float32)[:, None] * np.float32(2 * math.pi / length)
    waves = np.sin(rows + 2.4 * bend)
    glints = np.clip(smooth_noise(rng, height, width, (2.0, 9.0)) - 0.45, 0, 1)
    pattern = 0.45 + 0.28 * waves + 1.1 * glints
    return _blend(pattern, hsv(hue, saturation, value * 0.55), hsv(hue - 10, saturation * 0.65, value * 1.1))


def _brick(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    gray = rng.random() < 0.3
    hue, saturation = rng.uniform(-10, 42), rng.uniform(0.02, 0.2) if gray else rng.uniform(0.3, 0.8)
    value = rng.uniform(0.4, 0.85)
    tall = int(rng.integers(6, 13))
    wide, joint = int(tall * rng.uniform(1.8, 2.8)), 1 + (tall > 8)
    y, x = np.arange(height)[:, None] + int(rng.integers(tall)), np.arange(width)[None] + int(rng.integers(wide))
    row = y // tall
    x = x + (row % 2) * (wide // 2)
    shades = rng.uniform(0.35, 0.85, (int(row[-1, 0]) + 1, int(x.max()) // wide + 1)).astype(np.float32)
    pattern = shades[row, x // wide] + 0.07 * white_noise(rng, height, width)
    wall = _blend(pattern, hsv(hue, saturation, value * 0.45), hsv(hue + rng.uniform(-8, 8), saturation, value * 1.15))
    mortar = hsv(rng.uniform(20, 60), 0.1, value + (0.25 if rng.random() < 0.7 else -0.3))
    wall[(y % tall < joint) | (x % wide < joint)] = mortar
    return wall


def _sand(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    hue, saturation, value = rng.uniform(15, 60), rng.uniform(0.05, 0.55), rng.uniform(0.55, 0.95)
    grain = white_noise(rng, height, width)
    dunes = smooth_noise(rng, height, width, rng.uniform(24, 60))
    pattern = 0.55 + 0.26 * grain + 0.2 * dunes
    return _blend(pattern, hsv(hue, saturation, value * 0.66), hsv(hue + 4, saturation * 0.8, value * 1.08))


STUFF: dict[str, Texture] = {"sky": _sky, "grass": _grass, "water": _water, "brick": _brick, "sand": _sand}
"""Class name -> a function (rng, height, width) that paints float32 (height, width, 3), RGB of about 0 to 255."""


# ------------------------------------------------------------------ things
_V, _U = np.meshgrid(*[(np.arange(TILE, dtype=np.float32) + 0.5) / (TILE / 2) - 1] * 2, indexing="ij")

_RADIUS_SQUARED = _U * _U + _V * _V


def _plain(rng: np.random.Generator) -> np.ndarray:
    return np.zeros((TILE, TILE), np.float32)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    angle, count = rng.uniform(0, math.pi), rng.uniform(2.0, 4.5)
    along = np.float32(math.cos(angle)) * _U + np.float32(math.sin(angle)) * _V
    return np.clip(0.5 + 2.5 * np.sin(along * np.float32(count * math.pi)), 0, 1)


def _checks(rng: np.random.Generator) -> np.ndarray:
    count = rng.uniform(1.5, 3.0)
    return ((np.floor(_U * count) + np.floor(_V * count)) % 2).astype(np.float32)


def _dots(rng: np.random.Generator) -> np.ndarray:
    count, radius = rng.uniform(1.8, 3.2), rng.uniform(0.26, 0.4)
    u, v = _U * count, _V * count
    distance = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5)
    return np.clip((radius - distance) * 8 + 0.5, 0, 1)


def _speckles(rng: np.random.Generator) -> np.ndarray:
    return np.clip(0.4 + 0.8 * smooth_noise(rng, TILE, TILE, rng.uniform(3, 9), 2), 0, 1)


def _fade(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    return np.clip(0.5 + 0.5 * (np.float32(math.cos(angle)) * _U + np.float32(math.sin(angle)) * _V), 0, 1)


_PATTERNS = (_plain, _stripes, _checks, _dots, _speckles, _fade)


def thing_tile(rng: np.random.Generator, backdrop: np.ndarray) -> np.ndarray:
    """Draw the texture of a thing: any two colors in any pattern, darker towards the rim.

    Args:
        rng: source of everything that is drawn.
        backdrop: RGB color, 0 to 255, behind the thing; colors near it are drawn again, so that things can be seen.

    Returns:
        uint8 (TILE, TILE, 3).
    """
    for _ in range(6):
        hue, saturation, value = rng.uniform(0, 360), rng.uniform(0.15, 1.0), rng.uniform(0.3, 1.0)
        first = hsv(hue, saturation, value)
        if np.abs(first - backdrop).sum() > 150:
            break
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng)
    second = hsv(hue + rng.uniform(-60, 60), rng.uniform(0.1, 1.0), value + rng.choice((-0.3, 0.3)))
    tile = _blend(pattern, first, second)
    rim = np.float32(1.06) - np.float32(rng.uniform(0.1, 0.3)) * _RADIUS_SQUARED
    return cv2.multiply(tile, cv2.merge([rim, rim, rim]), dtype=cv2.CV_8U)
