"""Shapes of annotation programs as polygons and masks, and objects that consist of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import BadRecordError
from ...structures.masks import Patch, SegmentationError, check_polygons, polygons_to_patches
from .coco_data import SplitBuilder

Part = list[list[float]] | Patch  # a polygon of points [x, y] in pixels, or a mask
_CORNERS = 48


def circle(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> list[list[float]]:
    """Return an ellipse around (x, y) as a polygon of the same area, turned clockwise by `degrees`."""
    step = 2 * math.pi / _CORNERS
    grown = math.sqrt(step / math.sin(step))
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = []
    for corner in range(_CORNERS):
        a = grown * radius_x * math.cos(corner * step)
        b = grown * radius_y * math.sin(corner * step)
        points.append([x + a * cosine - b * sine, y + a * sine + b * cosine])
    return points


def add_object(split: SplitBuilder, image_id: int, label: str, parts: Sequence[Part], file: Path, where: str) -> None:
    """Add an object that is the union of its parts; polygons stay polygons where all parts are.

    Raises:
        BadRecordError: a part is malformed.
    """
    polygons = [part for part in parts if not isinstance(part, Patch)]
    patches = [part for part in parts if isinstance(part, Patch)]
    if not patches:
        split.add_polygons(image_id, label, polygons, file, where)
        return
    size = split.size(image_id)
    try:
        checked = [check_polygons([[v for point in polygon for v in point]], size) for polygon in polygons]
    except SegmentationError as error:
        raise BadRecordError(file, str(error), where) from error
    split.add_patch(image_id, label, union([*patches, *polygons_to_patches(checked, size)]), file, where)


def union(patches: Sequence[Patch]) -> Patch:
    """Return the union of masks of one image."""
    filled = [patch for patch in patches if patch.bits.size]
    if len(filled) < 2:
        return filled[0] if filled else patches[0]
    top, left = min(p.top for p in filled), min(p.left for p in filled)
    bottom = max(p.top + p.bits.shape[0] for p in filled)
    right = max(p.left + p.bits.shape[1] for p in filled)
    bits = np.zeros((bottom - top, right - left), dtype=bool)
    for patch in filled:
        y, x = patch.top - top, patch.left - left
        bits[y : y + patch.bits.shape[0], x : x + patch.bits.shape[1]] |= patch.bits
    return Patch(top, left, bits)
