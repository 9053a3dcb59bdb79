"""Polygons of masks: exact outlines with holes, and one ring for formats that know neither holes nor parts.

Coordinates are x, y in pixels with (0, 0) at the upper left corner of the upper left pixel, so that pixel (row, column)
covers x from column to column + 1. Outlines run along the edges of pixels: their area is the number of pixels, and
pycocotools rasterizes them back to the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .masks import Patch

_MAX_PAIRS = 1 << 20  # of vertices whose distances are compared at a time


class Polygon(NamedTuple):
    """One connected part of a mask. Rings are (P, 2) x, y, not closed, P >= 3; integers unless simplified.

    The signed area (shoelace formula on the numbers as they are) of the exterior is positive, that of holes negative.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...]


def signed_area(ring: np.ndarray) -> float:
    """Return the area inside a ring (P, 2), positive if x turns to y along it."""
    x, y = ring.astype(np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def trace_polygons(patch: Patch, tolerance: float = 0.0) -> list[Polygon]:
    """Trace the outlines of a mask, in coordinates of the image.

    Pixels that touch only at a corner belong to different polygons; every polygon is valid in the sense of OGC.

    Args:
        patch: the mask; none of its pixels need be set.
        tolerance: 0 gives exact outlines. Otherwise vertices are left out while the outline moves by at most this many
            pixels; rings that would degenerate stay exact. Simplified rings may cross each other.

    Returns:
        One polygon for each part; empty for an empty mask.

    Raises:
        ValueError: the tolerance is negative or not a number.
    """
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be 0 or a positive number of pixels, not {tolerance}")
    if not patch.bits.any():
        return []
    bits = np.ascontiguousarray(patch.bits, dtype=np.uint8)
    count, parts, windows, _ = cv2.connectedComponentsWithStats(bits, connectivity=4)
    polygons = []
    for number in range(1, count):
        left, top, width, height = (int(v) for v in windows[number, :4])
        part = parts[top : top + height, left : left + width] == number
        polygons.append(_trace_part(part, patch.left + left, patch.top + top, tolerance))
    return polygons


def _trace_part(bits: np.ndarray, left: int, top: int, tolerance: float) -> Polygon:
    """Trace one 4-connected part.

    OpenCV gives the centers of the outermost pixels. In an image enlarged by 2 these are u = 2 x at the left and
    2 x + 1 at the right border of pixel x, so (u + 1) // 2 is the edge of that pixel, and for holes likewise; the
    diagonal steps that it takes at inner corners have both ends at that corner.
    """
    large = bits.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    exterior, holes = np.zeros((0, 2), np.int64), []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        ring = simplify(_corners((contour[:, 0].astype(np.int64) + 1) // 2) + (left, top), tolerance)
        if (signed_area(ring) < 0) == (parent < 0):
            ring = ring[::-1]
        if parent < 0:
            exterior = ring
        else:
            holes.append(ring)
    return Polygon(exterior, tuple(holes))


def _corners(points: np.ndarray) -> np.ndarray:
    """Return the points (P, 2) at which a ring turns."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out vertices of a ring (P, 2) whose distance to the new outline is at most `tolerance` pixels.

    A ring that would lose its area is returned as it is.
    """
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    simple = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(ring.dtype)
    return simple if len(simple) >= 3 and signed_area(simple) else ring


def join_polygons(polygons: Sequence[Polygon]) -> np.ndarray:
    """Join holes and parts to one ring (P, 2) by slits of zero width; (0, 2) without polygons.

    A slit is passed in both directions, so that pycocotools rasterizes the ring to the same mask; the area is the same.
    """
    rings = [join_holes(polygon) for polygon in polygons]
    return _join(rings) if rings else np.zeros((0, 2), np.int64)


def join_holes(polygon: Polygon) -> np.ndarray:
    """Join a polygon and its holes to one ring (P, 2) by slits of zero width."""
    return _join([polygon.exterior, *polygon.holes])


def _join(rings: Sequence[np.ndarray]) -> np.ndarray:
    joined = rings[0]
    for ring in rings[1:]:
        i, j = _nearest(joined, ring)
        touch = int((joined[i] == ring[j]).all())  # then there is no slit, and no vertex twice
        joined = np.concatenate([joined[: i + 1], ring[j + touch :], ring[: j + 1], joined[i + touch :]])
    return joined


def _nearest(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Return the indices of two vertices that are near each other, the nearest ones unless there are very many."""
    some = second[: max(1, _MAX_PAIRS // len(first))]
    distances = np.square(first[:, None] - some).sum(axis=2)
    i, j = np.unravel_index(int(distances.argmin()), distances.shape)
    return int(i), int(j)
