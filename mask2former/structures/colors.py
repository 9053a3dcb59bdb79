"""Colors of classes and objects: fixed for an index, and far from those of neighboring indices."""

from __future__ import annotations

import colorsys
from functools import lru_cache

Color = tuple[int, int, int]

_GOLDEN = 0.61803398875


@lru_cache(maxsize=4096)
def color_of(index: int) -> Color:
    """Return the color of an index: vivid, fixed, and far from those of neighboring indices.

    Hues step by the golden ratio (Weyl sequence: any run of indices spreads over the circle); saturation and
    brightness cycle through three levels, so that colors whose hues come close still differ.
    """
    hue = (0.54 + index * _GOLDEN) % 1.0
    saturation = (0.85, 0.60, 1.0)[index % 3]
    value = (1.0, 1.0, 0.86)[index % 3]
    r, g, b = colorsys.hsv_to_rgb(hue, saturation, value)
    return lifted((round(r * 255), round(g * 255), round(b * 255)))


def lifted(color: Color, luminance: float = 107.0) -> Color:
    """Mix a color with white up to this luminance (0..255), because pure blue looks nearly black."""
    current = 0.30 * color[0] + 0.59 * color[1] + 0.11 * color[2]
    amount = max(0.0, (luminance - current) / (255.0 - current)) if current < 255 else 0.0
    r, g, b = (round(c + (255 - c) * amount) for c in color)
    return r, g, b


def shade_of(color: Color, index: int) -> Color:
    """Return a light or dark variant of a class color for the `index`-th object of the class (0: the color itself)."""
    amount = (0.0, 0.30, -0.25, 0.50, -0.12, 0.16)[index % 6]
    target = 255 if amount > 0 else 0
    r, g, b = (round(c + (target - c) * abs(amount)) for c in color)
    return r, g, b
