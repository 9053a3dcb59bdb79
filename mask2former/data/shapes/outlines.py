"""Outlines of the things: polygons inside the unit circle, with some variation inside each class."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Rings = tuple[np.ndarray, ...]
"""Closed polygons (N, 2), x to the right and y downwards; a point is inside if an odd number of them encloses it."""

_ROUND = 48  # corners of a circle: within 0.2 % of its radius


def _ring(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float64)


def _arc(radius: float, start: float, end: float, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return points on a circle; angles in radians, both ends included."""
    angles = np.linspace(start, end, _ROUND + 1)
    return np.stack([center[0] + radius * np.cos(angles), center[1] + radius * np.sin(angles)], axis=1)


def _circle(radius: float) -> np.ndarray:
    return _arc(radius, 0.0, 2 * math.pi)[:-1]


def _disk(rng: np.random.Generator) -> Rings:
    return (_circle(1.0),)


def _square(rng: np.random.Generator) -> Rings:
    side = 0.76
    return (_ring((-side, -side), (side, -side), (side, side), (-side, side)),)


def _triangle(rng: np.random.Generator) -> Rings:
    angles = -math.pi / 2 + np.array([0.0, 2.0, 4.0]) * math.pi / 3 + rng.uniform(-0.18, 0.18, 3)
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1),)


def _star(rng: np.random.Generator) -> Rings:
    points = int(rng.integers(5, 7))
    angles = np.arange(2 * points) * math.pi / points
    radii = np.where(np.arange(2 * points) % 2, rng.uniform(0.4, 0.5), 1.0)
    return (np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1),)


def _ring_shape(rng: np.random.Generator) -> Rings:
    return _circle(1.0), _circle(rng.uniform(0.48, 0.64))


def _cross(rng: np.random.Generator) -> Rings:
    a, b = rng.uniform(0.24, 0.34), 0.95
    corners = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    return (_ring(*corners, (-a, -b)),)


def _heart(rng: np.random.Generator) -> Rings:
    t = np.linspace(0.0, 2 * math.pi, _ROUND, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return (np.stack([x, y - 2.0], axis=1) / 17.0,)


def _crescent(rng: np.random.Generator) -> Rings:
    shift, radius = rng.uniform(0.42, 0.58), 0.82
    # Where the unit circle and the circle that is cut out of it meet.
    x = (1 + shift**2 - radius**2) / (2 * shift)
    outer, inner = math.acos(x), math.atan2(math.sqrt(1 - x * x), x - shift)
    cut = _arc(radius, 2 * math.pi - inner, inner, (shift, 0.0))
    return (np.concatenate([_arc(1.0, outer, 2 * math.pi - outer), cut[1:-1]]),)


def _arrow(rng: np.random.Generator) -> Rings:
    shaft, neck = rng.uniform(0.2, 0.28), rng.uniform(-0.05, 0.15)
    tail = [(neck, shaft), (-0.95, shaft), (-0.95, -shaft), (neck, -shaft)]
    return (_ring((neck, -0.72), (1.0, 0.0), (neck, 0.72), *tail),)


def _bar(rng: np.random.Generator) -> Rings:
    half = rng.uniform(0.2, 0.3)
    return (_ring((-0.96, -half), (0.96, -half), (0.96, half), (-0.96, half)),)


def _bolt(rng: np.random.Generator) -> Rings:
    return (_ring((0.3, -1.0), (-0.55, 0.12), (-0.08, 0.12), (-0.3, 1.0), (0.55, -0.22), (0.08, -0.22), (0.62, -1.0)),)


_LETTERS: dict[str, Rings] = {
    "A": (
        _ring(
            (-0.2, -0.8), (0.2, -0.8), (0.66, 0.8), (0.3, 0.8), (0.19, 0.42), (-0.19, 0.42), (-0.3, 0.8), (-0.66, 0.8)
        ),
        _ring((0.0, -0.45), (0.12, 0.12), (-0.12, 0.12)),
    ),
    "E": (
        _ring(
            *((-0.55, -0.8), (0.55, -0.8), (0.55, -0.5), (-0.22, -0.5), (-0.22, -0.15), (0.4, -0.15)),
            *((0.4, 0.15), (-0.22, 0.15), (-0.22, 0.5), (0.55, 0.5), (0.55, 0.8), (-0.55, 0.8)),
        ),
    ),
    "F": (
        _ring(
            *((-0.5, -0.8), (0.55, -0.8), (0.55, -0.5), (-0.17, -0.5), (-0.17, -0.12)),
            *((0.42, -0.12), (0.42, 0.18), (-0.17, 0.18), (-0.17, 0.8), (-0.5, 0.8)),
        ),
    ),
    "H": (
        _ring(
            *((-0.58, -0.8), (-0.25, -0.8), (-0.25, -0.16), (0.25, -0.16), (0.25, -0.8), (0.58, -0.8)),
            *((0.58, 0.8), (0.25, 0.8), (0.25, 0.16), (-0.25, 0.16), (-0.25, 0.8), (-0.58, 0.8)),
        ),
    ),
    "K": (
        _ring(
            *((-0.56, -0.8), (-0.24, -0.8), (-0.24, -0.15), (0.2, -0.8), (0.6, -0.8), (0.08, -0.02)),
            *((0.64, 0.8), (0.24, 0.8), (-0.13, 0.25), (-0.24, 0.42), (-0.24, 0.8), (-0.56, 0.8)),
        ),
    ),
    "N": (
        _ring(
            *((-0.58, -0.8), (-0.26, -0.8), (0.26, 0.25), (0.26, -0.8), (0.58, -0.8)),
            *((0.58, 0.8), (0.26, 0.8), (-0.26, -0.25), (-0.26, 0.8), (-0.58, 0.8)),
        ),
    ),
    "P": (
        _ring(
            *((-0.52, -0.8), (0.3, -0.8), (0.6, -0.5), (0.6, -0.1), (0.3, 0.2)),
            *((-0.2, 0.2), (-0.2, 0.8), (-0.52, 0.8)),
        ),
        _ring((-0.2, -0.5), (0.18, -0.5), (0.28, -0.4), (0.28, -0.2), (0.18, -0.1), (-0.2, -0.1)),
    ),
}


def _letter(rng: np.random.Generator) -> Rings:
    return tuple(_LETTERS.values())[int(rng.integers(len(_LETTERS)))]


OUTLINES: dict[str, Callable[[np.random.Generator], Rings]] = {
    "disk": _disk,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring_shape,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "arrow": _arrow,
    "bar": _bar,
    "bolt": _bolt,
    "letter": _letter,
}
"""Class name -> a function that draws the outline of one thing of the class."""
